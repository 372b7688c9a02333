"""The files that links brought, on this disk: kept within a budget, given to predictions, removed when room is needed.

    kept/<sha256> ──► hard link in models/loras/by-link/<ours>/my_lora-<digest>.safetensors, as long as it is in use

A file is kept once, by its content; a model folder shows it only while a prediction uses it, so that no other one finds
it in its lists. Whoever uses a file holds a shared lock on it (flock(2)), which the kernel drops with the process: so
several processes may share these folders, and what a killed one left is known by nobody holding it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from comfyui.errors import StoppedError, StorageError, WeightsError
from comfyui.weights.bring.fetch import reason
from comfyui.weights.bring.present import quick_check
from comfyui.weights.disk import part_beside, require_room, room_errors
from comfyui.weights.judge.verify import Digest
from comfyui.weights.linked.index import Content, Index, Kept
from comfyui.weights.linked.names import BY_LINK, content_name
from comfyui.weights.listener import size_text
from comfyui.weights.transfer.target import Target

INDEX_NAME = "index.json"
_KEPT = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\..+\.[0-9a-f]{12}\.part")
_OWN_FOLDER = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Spot:
    """Where a file is to appear: `folder` is a path below the models folder, `name` what its server calls it."""

    folder: str
    name: str


class Lease:
    """What one prediction uses: until it is closed, none of it is removed. Use it as a context manager."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.closed = False
        self.handles: list[int] = []
        self.shown: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back; what a late thread still brings for it is refused. Harmless the second time."""
        self._shelf.release(self)


class Part:
    """A file on its way: under a temporary name, locked, with room for it set aside. Use it as a context manager."""

    def __init__(self, shelf: Shelf, path: Path, spot: Spot) -> None:
        self._shelf = shelf
        self.path = path
        self.spot = spot
        self.reserved = 0
        self.target = Target(path)
        _lock(self.target.fileno(), fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.target.close()
        self._shelf.drop(self)

    def reserve(self, size: int, say: Callable[[str], None]) -> None:
        """See that there is room for `size` bytes of it in all. Raises StorageError."""
        self._shelf.reserve(self, size, say)


class Shelf:
    """The files kept in `folder` and shown below `models_dir`, `budget` bytes at most. Safe to use from any thread."""

    def __init__(self, folder: Path, models_dir: Path, budget: int) -> None:
        self.budget = budget
        self._folder = folder
        self._models_dir = models_dir
        self._own = secrets.token_hex(8)
        self._mutex = threading.Lock()
        self._parts: set[Part] = set()
        self._shown: dict[Path, tuple[str, int]] = {}
        self._swept = False

    def lease(self) -> Lease:
        """A new lease, of nothing yet."""
        return Lease(self)

    def take(self, content: Content, spot: Spot, lease: Lease, say: Callable[[str], None]) -> tuple[str, Kept] | None:
        """The name under which the content is there now, and what it is; None if it has to be fetched."""
        with self._changing() as index:
            kept = index.find(content)
            if kept is None:
                return None
            try:
                quick_check(allow_pickle=False)(spot.name, Digest(kept.size, kept.sha256), self._file(kept))
            except (WeightsError, OSError) as error:
                say(f"{spot.name} was there and is damaged ({reason(error)}); fetching it again")
                index.forget(kept.sha256)
                self._file(kept).unlink(missing_ok=True)
                return None
            index.use(kept, time.time())
            return self._show(kept, spot, lease), kept

    def new_part(self, spot: Spot) -> Part:
        """A file to be written. Raises StorageError for a disk without room."""
        with self._changing(), room_errors(self._folder, spot.name, "some bytes"):
            part = Part(self, part_beside(self._folder / "fetched"), spot)
            self._parts.add(part)
        return part

    def reserve(self, part: Part, size: int, say: Callable[[str], None]) -> None:
        """Remove files that are not in use, the one not used for longest first, until `size` bytes fit in."""
        with self._changing() as index:
            more = size - part.reserved
            taken = sum(kept.size for kept in index.files.values()) + sum(part.reserved for part in self._parts)
            for kept in index.least_recently_used():
                if taken + more <= self.budget and _free(self._folder) >= more:
                    break
                if self._remove(self._file(kept)):
                    index.forget(kept.sha256)
                    taken -= kept.size
                    say(f"Removed {size_text(kept.size)} of linked weights, not used for longest, to make room")
            if taken + more > self.budget:
                raise StorageError(
                    f"There is no room for {part.spot.name} ({size_text(size)}) among the weights that come by links: "
                    f"{size_text(taken - part.reserved)} of {size_text(self.budget)} are in use now. Use fewer of them "
                    "at once, bake some in a training, or set LINKED_WEIGHTS_GB higher.",
                    path=part.spot.name,
                    expected=f"{size} bytes",
                    seen=f"{self.budget - taken + part.reserved} bytes",
                )
            require_room(self._folder, more, part.spot.name)
            part.reserved = size

    def keep(self, part: Part, digest: Digest, content: Content, lease: Lease) -> tuple[str, Kept]:
        """Give a proven file its name; returns what `take` does. Raises StorageError for a disk without room."""
        with room_errors(self._folder, part.spot.name, f"{digest.size} bytes"):
            part.target.sync()
        with self._changing() as index:
            kept = Kept(digest.sha256, digest.size, time.time())
            part.path.replace(self._file(kept))
            # Its lock, which the lease takes next; nobody comes between, for the index is locked.
            part.target.close()
            self._parts.discard(part)
            index.add(kept, content)
            return self._show(kept, part.spot, lease), kept

    def drop(self, part: Part) -> None:
        """Remove a file that was not kept, and give its room back."""
        with self._mutex:
            part.path.unlink(missing_ok=True)
            self._parts.discard(part)

    def release(self, lease: Lease) -> None:
        """End a lease; what nobody else uses disappears from the model folders."""
        with self._mutex:
            lease.closed = True
            for path in lease.shown:
                sha256, users = self._shown.pop(path)
                if users > 1:
                    self._shown[path] = (sha256, users - 1)
                else:
                    path.unlink(missing_ok=True)
            for handle in lease.handles:
                os.close(handle)
            lease.shown, lease.handles = [], []

    def sweep(self) -> None:
        """Remove what killed processes left, and what the index does not know. Needed once in a process's life."""
        with self._changing(sweep=True):
            return

    def _sweep(self, index: Index) -> None:
        for entry in self._folder.iterdir():
            if _PART.fullmatch(entry.name) or (_KEPT.fullmatch(entry.name) and entry.name not in index.files):
                self._remove(entry)
        for pattern in (f"*/{BY_LINK}/*", f"*/*/{BY_LINK}/*"):
            for own in self._models_dir.glob(pattern):
                if _OWN_FOLDER.fullmatch(own.name) and own.name != self._own:
                    for entry in own.iterdir():
                        self._remove(entry)
                    with contextlib.suppress(OSError):
                        own.rmdir()

    @contextmanager
    def _changing(self, *, sweep: bool = False) -> Iterator[Index]:
        """The index, for as long as nobody else may change anything; saved at the end. Nothing is fetched meanwhile."""
        with self._mutex:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder, os.O_RDONLY)
            try:
                with contextlib.suppress(OSError):
                    # Some network file systems have no locks; there, let one process have these folders to itself.
                    fcntl.flock(handle, fcntl.LOCK_EX)
                index = Index.load(self._folder / INDEX_NAME)
                for sha256 in [kept.sha256 for kept in index.files.values() if not self._file(kept).is_file()]:
                    index.forget(sha256)
                if sweep or not self._swept:
                    self._sweep(index)
                    self._swept = True
                try:
                    yield index
                finally:
                    with room_errors(self._folder, INDEX_NAME, "some bytes"):
                        index.save(self._folder / INDEX_NAME)
            finally:
                os.close(handle)

    def _show(self, kept: Kept, spot: Spot, lease: Lease) -> str:
        """Let the file appear in its model folder; returns its name there."""
        if lease.closed:
            raise StoppedError("The prediction that wanted these weights has ended.")
        for whole in (False, True):
            name = f"{BY_LINK}/{self._own}/{content_name(spot.name, kept.sha256, whole=whole)}"
            path = self._models_dir / spot.folder / name
            sha256, users = self._shown.get(path, (kept.sha256, 0))
            if sha256 == kept.sha256:
                break
        # Locked before it is seen: what nobody holds, another process may take for a killed one's.
        handle = os.open(self._file(kept), os.O_RDONLY)
        lease.handles.append(handle)
        _lock(handle, fcntl.LOCK_SH)
        if not users:
            self._link(self._file(kept), path)
        lease.shown.append(path)
        self._shown[path] = (kept.sha256, users + 1)
        return name

    def _link(self, file: Path, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            path.hardlink_to(file)
        except OSError:
            # A model folder on another disk, or a disk without hard links.
            path.symlink_to(file)
        # ComfyUI reads its lists anew when a folder's time has changed, and the file system's own clock may stand still
        # for milliseconds.
        os.utime(path.parent, ns=(time.time_ns(), time.time_ns()))

    def _remove(self, path: Path) -> bool:
        """Remove a file unless somebody uses it."""
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            path.unlink(missing_ok=True)
            return True
        try:
            free = _lock(handle, fcntl.LOCK_EX)
            if free:
                path.unlink(missing_ok=True)
            return free
        finally:
            os.close(handle)

    def _file(self, kept: Kept) -> Path:
        return self._folder / kept.sha256


def _lock(handle: int, kind: int) -> bool:
    """Take a lock if nobody has it; True also where the file system has no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _free(folder: Path) -> int:
    return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
