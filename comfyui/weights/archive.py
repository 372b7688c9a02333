"""Write a tar of weights in one pass: the manifest first, every file streamed straight to its place behind it.

The manifest is the first member but is known last, so its room is reserved up front and filled at the end, padded
with spaces, which JSON allows. GNU format: a member's header is as long as its name asks for, whatever its size, and
sizes above 8 GiB fit; so a header can be filled in once its file is complete. The same files from the same URLs give
the same bytes: times, owners and modes are fixed.

The tar lies under a temporary name until `finish`. A writer that knows all sizes beforehand, and fills several members
at once, can keep this layout.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from comfyui.errors import WeightsError
from comfyui.weights.disk import part_beside, require_room, room_errors, sync_folder
from comfyui.weights.folders import check_member_path, path_key
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, Weight
from comfyui.weights.verify import Verifier

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE


def padded(size: int, unit: int = BLOCK) -> int:
    """`size` bytes rounded up to whole units."""
    return -(-size // unit) * unit


def tar_length(data_end: int) -> int:
    """Length in bytes of a tar whose last member's data, padding included, ends at `data_end`."""
    return padded(data_end + 2 * BLOCK, RECORD)


class ArchiveWriter:
    """A tar being written to `out`; use it as a context manager.

    `manifest_room` is the most bytes its manifest can take (`manifest.room_for`). Leaving the context without `finish`
    removes what was written.
    """

    def __init__(self, out: Path, *, manifest_room: int) -> None:
        self._out = out
        self._part = part_beside(out)
        self._manifest_size = padded(manifest_room)
        self._weights: list[Weight] = []
        self._taken: set[str] = set()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self._part.open("xb")
        try:
            self._file.seek(len(_header(MANIFEST_NAME, 0)) + self._manifest_size)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._discard()
            return
        # A full disk would fail once more when the rest is flushed, and hide the error that says what was needed.
        with contextlib.suppress(OSError):
            self._discard()

    def add(self, path: str, url: str | None, size: int | None, chunks: Iterable[bytes], verifier: Verifier) -> Weight:
        """Append one file from its chunks, past the verifier. `size` in bytes is what was declared, if anything.

        Raises WeightsError for a bad or repeated path, bytes the verifier refuses, or a full disk. After an error the
        writer cannot be used any more.
        """
        check_member_path(path)
        if path_key(path) in self._taken:
            raise WeightsError(f"{path} is in the tar already.", path=path, expected="a path used once", seen=path)
        self._taken.add(path_key(path))
        if size is not None:
            require_room(self._out.parent, size, path)
        with room_errors(self._out.parent, path, "more bytes" if size is None else f"{size} bytes"):
            start = self._opened.tell()
            offset = start + len(_header(path, 0))
            self._opened.seek(offset)
            for chunk in chunks:
                verifier.feed(chunk)
                self._opened.write(chunk)
            digest = verifier.finish()
            self._opened.write(bytes(padded(digest.size) - digest.size))
            end = self._opened.tell()
            self._opened.seek(start)
            self._opened.write(_header(path, digest.size))
            self._opened.seek(end)
        self._weights.append(Weight(path, url, digest.size, digest.sha256, offset))
        return self._weights[-1]

    def finish(self) -> Manifest:
        """Write the manifest and the tar's end, make it all last, and give the tar its name."""
        manifest = Manifest(tuple(self._weights))
        text = manifest.dump()
        if len(text) > self._manifest_size:
            raise ValueError(f"the manifest takes {len(text)} bytes, but {self._manifest_size} were reserved")
        with room_errors(self._out.parent, self._out.name, "more bytes"):
            end = self._opened.tell()
            self._opened.write(bytes(tar_length(end) - end))
            self._opened.seek(0)
            self._opened.write(_header(MANIFEST_NAME, self._manifest_size))
            # The line end goes last, so that `tar -xO` leaves a terminal in order.
            self._opened.write(text.rstrip(b"\n").ljust(self._manifest_size - 1) + b"\n")
            self._opened.flush()
            os.fsync(self._opened.fileno())
        self._opened.close()
        self._part.replace(self._out)
        sync_folder(self._out.parent)
        return manifest

    @property
    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the archive is not open; use it in a with statement")
        return self._file

    def _discard(self) -> None:
        """Close and remove what is left under the temporary name; after `finish` nothing is."""
        try:
            if self._file is not None:
                # Closing flushes, which may fail; the file goes either way.
                self._file.close()
        finally:
            self._part.unlink(missing_ok=True)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT, encoding="utf-8", errors="strict")
