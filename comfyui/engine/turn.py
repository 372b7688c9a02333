"""One prediction at a time has ComfyUI to itself: its queue, and its input, output and temp folders.

While one runs, the next ones get their files together in folders of their own. A turn moves files by renames, which
takes no time: what is prepared goes into ComfyUI's input folder, and everything that was read and written goes away
with the prediction whose turn it was, whatever a custom node did there. So no prediction sees a file of another.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from comfyui.engine.server import EngineFolders


@dataclass(frozen=True)
class OwnFolders:
    """A prediction's own folders: `input` to be filled before its turn; `output` and `temp` hold what it made after."""

    root: Path

    @property
    def input(self) -> Path:
        """What ComfyUI will find in its input folder."""
        return self.root / "input"

    @property
    def output(self) -> Path:
        """What was in ComfyUI's output folder at the end of the turn."""
        return self.root / "output"

    @property
    def temp(self) -> Path:
        """What was in ComfyUI's temp folder at the end of the turn."""
        return self.root / "temp"

    def after_turn(self, path: Path, folders: EngineFolders) -> Path:
        """Where a file of ComfyUI's output or temp folder lies once the turn is over."""
        for theirs, ours in ((folders.output, self.output), (folders.temp, self.temp)):
            if path.is_relative_to(theirs.resolve()):
                return ours / path.relative_to(theirs.resolve())
        return path


class Turns:
    """The order in which predictions have ComfyUI: first come, first served."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def taken(self) -> bool:
        """Whether some prediction has ComfyUI now."""
        return self._lock.locked()

    @asynccontextmanager
    async def take(self, own: OwnFolders, folders: EngineFolders) -> AsyncIterator[None]:
        """Wait for the turn; ComfyUI's folders are this prediction's until the end of the block."""
        async with self._lock:
            _give(own, folders)
            try:
                yield
            finally:
                # No await: not even a second cancel can leave this half done.
                _take_back(own, folders)


@asynccontextmanager
async def own_folders(parent: Path) -> AsyncIterator[OwnFolders]:
    """Fresh folders below `parent`, which must be on ComfyUI's disk; gone after the block."""
    own = _make(parent)
    try:
        yield own
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, own.root, ignore_errors=True))


def _make(parent: Path) -> OwnFolders:
    parent.mkdir(parents=True, exist_ok=True)
    own = OwnFolders(Path(tempfile.mkdtemp(dir=parent)))
    own.input.mkdir()
    return own


def _give(own: OwnFolders, folders: EngineFolders) -> None:
    """Make the prediction's files what ComfyUI finds in its input folder."""
    # Nothing lies in ComfyUI's folders between turns, unless a program besides ours put it there.
    for folder in (folders.input, folders.output, folders.temp):
        for left in _entries(folder):
            with suppress(FileNotFoundError):
                left.unlink() if left.is_symlink() or left.is_file() else shutil.rmtree(left)
        _make_sure_of(folder)
    _move_all(own.input, folders.input)


def _take_back(own: OwnFolders, folders: EngineFolders) -> None:
    """Empty ComfyUI's folders; what was in them is the prediction's."""
    for theirs, ours in ((folders.input, own.input), (folders.output, own.output), (folders.temp, own.temp)):
        ours.mkdir(exist_ok=True)
        _move_all(theirs, ours)
        _make_sure_of(theirs)


def _move_all(source: Path, target: Path) -> None:
    # The folders themselves stay: nodes list them at any time, and a class whose list fails is missing in /object_info.
    for entry in _entries(source):
        with suppress(FileNotFoundError):
            entry.rename(target / entry.name)


def _make_sure_of(folder: Path) -> None:
    # Python asks what is there after it was told that something is; by then it may be gone.
    with suppress(FileExistsError):
        folder.mkdir(exist_ok=True)


def _entries(folder: Path) -> list[Path]:
    """What is in one of ComfyUI's folders now: it removes its temp folder itself when it starts and when it ends."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
