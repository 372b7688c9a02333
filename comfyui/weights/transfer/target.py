"""A file that is written in pieces at their final offsets, past the page cache where the disk allows it.

Buffered writes cost about a CPU second for each GB in the kernel, which is what a fast download waits for. O_DIRECT
(open(2), Linux) does not; it asks for whole aligned blocks of memory and disk, so the ragged ends of a region still go
through the page cache, in pages of their own.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from comfyui.weights.transfer.buffers import PAGE_BYTES

_DIRECT = getattr(os, "O_DIRECT", 0)
_NO_DIRECT_IO = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})


class TargetClosedError(Exception):
    """The transfer has ended; whoever still wants to write came too late and must not."""


class Target:
    """The file at `path`, made if it is not there; `close` it at the end. Safe to use from any thread.

    Raises OSError as the disk does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._direct_fd: int | None = None
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()
        if _DIRECT:
            try:
                self._direct_fd = os.open(path, os.O_WRONLY | _DIRECT)
            except OSError as error:
                if error.errno not in _NO_DIRECT_IO:
                    os.close(self._fd)
                    raise

    def fileno(self) -> int:
        """The file's descriptor, for locks."""
        return self._fd

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long."""
        with self._using():
            os.ftruncate(self._fd, size)

    def allocate(self, size: int) -> None:
        """Make the file `size` bytes long, with room for all of it on the disk where the file system can promise it."""
        os.ftruncate(self._fd, size)
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._fd, 0, size)
            except OSError as error:
                if error.errno not in _NO_DIRECT_IO:
                    raise

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`. Raises TargetClosedError after `close`.

        Goes past the page cache only if `data` begins in memory where `offset` lies in a page (see place_in).
        """
        with self._using():
            head = min(-offset % PAGE_BYTES, len(data))
            body = (len(data) - head) // PAGE_BYTES * PAGE_BYTES if self._direct_fd is not None else 0
            if body and self._write_direct(offset + head, data[head : head + body]):
                self._write_buffered(offset, data[:head])
                self._write_buffered(offset + head + body, data[head + body :])
            else:
                self._write_buffered(offset, data)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with what was written at `offset`; what never was reads as zeros or ends short with an OSError."""
        with self._using():
            while out:
                count = os.preadv(self._fd, [out], offset)
                if not count:
                    raise OSError(errno.EIO, f"the file ends at {offset}", str(self.path))
                offset, out = offset + count, out[count:]

    def sync(self) -> None:
        """Return when all that was written would survive a power cut."""
        with self._using():
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file once nobody is writing; a thread that comes later gets TargetClosedError."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: not self._users)
        os.close(self._fd)
        if self._direct_fd is not None:
            os.close(self._direct_fd)

    def _using(self) -> _Use:
        return _Use(self)

    def _write_direct(self, offset: int, data: memoryview) -> bool:
        """False where this disk takes no direct write after all; the bytes are then still to be written."""
        assert self._direct_fd is not None  # noqa: S101 - the caller asked
        while data:
            try:
                count = os.pwrite(self._direct_fd, data, offset)
            except OSError as error:
                if error.errno not in _NO_DIRECT_IO:
                    raise
                return False
            if count % PAGE_BYTES:
                # A short write off a block's edge; what follows can only be buffered.
                self._write_buffered(offset + count, data[count:])
                return True
            offset, data = offset + count, data[count:]
        return True

    def _write_buffered(self, offset: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(self._fd, data, offset)
            offset, data = offset + count, data[count:]


class _Use:
    """While it is entered, the target's files stay open."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> None:
        target = self._target
        with target._idle:
            if target._closed:
                raise TargetClosedError
            target._users += 1

    def __exit__(self, *_: object) -> None:
        target = self._target
        with target._idle:
            target._users -= 1
            target._idle.notify_all()


def place_in(view: memoryview, offset: int, length: int) -> memoryview:
    """The part of a page-aligned buffer where `length` bytes for `offset` of a file lie as they will in its pages."""
    shift = offset % PAGE_BYTES
    return view[shift : shift + length]
