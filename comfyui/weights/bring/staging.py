"""Files on their way into the models folder: under temporary names until every one of them is proven, then renamed.

Use it as a context manager: leaving it without `commit`, for whatever reason, removes all that was written. What a
killed process could not remove is swept away by the next one; whoever uses this holds the folder's lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from comfyui.errors import StorageError
from comfyui.weights.disk import part_beside, room_errors, sync_folder
from comfyui.weights.folders import check_member_path
from comfyui.weights.listener import Listener
from comfyui.weights.transfer.target import Target

_PART = re.compile(r"\..+\.[0-9a-f]{12}\.part")


class Staging:
    """Files beside their final places below `models_dir`, an existing folder."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._parts: dict[str, Path] = {}
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for part in self._parts.values():
            part.unlink(missing_ok=True)

    def sweep(self, paths: Iterable[str]) -> None:
        """Remove what killed processes left in the folders of these files."""
        for folder in {self.final(path).parent for path in paths}:
            if folder.is_dir():
                for left in folder.iterdir():
                    if _PART.fullmatch(left.name) and left not in self._parts.values():
                        left.unlink(missing_ok=True)

    def final(self, path: str) -> Path:
        """Where the file will lie. Raises WeightsError for a path that leads anywhere else."""
        return self._models_dir / check_member_path(path)

    def open(self, path: str, size: int) -> Target:
        """The file under its temporary name, `size` bytes long; the caller closes it.

        Opened again, it is the same file. Raises StorageError when the disk has no room or something is in the way.
        """
        final = self.final(path)
        if path not in self._parts:
            self._make_way(path, final)
            self._parts[path] = part_beside(final)
        self._sizes[path] = size
        with room_errors(final.parent, path, f"{size} bytes"):
            target = Target(self._parts[path])
            try:
                target.allocate(size)
            except BaseException:
                target.close()
                raise
        return target

    def commit(self, listener: Listener) -> None:
        """Give every file its name, and say what is replaced. To be called once all are proven and on the disk."""
        finals = {path: self.final(path) for path in self._parts}
        for path, final in finals.items():
            if final.exists():
                listener.say(f"replacing {path}: {final.stat().st_size} bytes before, {self._sizes[path]} now")
        for path, final in finals.items():
            self._parts[path].replace(final)
        for folder in self._folders(finals.values()):
            sync_folder(folder)

    def _make_way(self, path: str, final: Path) -> None:
        if final.is_dir():
            raise StorageError(
                f"{path} cannot be put in place: a folder has its name. Remove that folder.",
                path=path,
                expected="a file or nothing",
                seen="a folder",
            )
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            raise StorageError(
                f"{path} cannot be put in place: a file has the name of its folder. Remove that file.",
                path=path,
                expected="a folder or nothing",
                seen="a file",
            ) from e

    def _folders(self, finals: Iterable[Path]) -> set[Path]:
        """All folders that have got a new entry: a new folder is one of the folder above it."""
        found: set[Path] = set()
        for final in finals:
            folder = final.parent
            while folder not in found and folder != self._models_dir.parent:
                found.add(folder)
                folder = folder.parent
        return found
