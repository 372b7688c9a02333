"""The few things that writing weights to a disk needs: temporary names, room, and making a rename last."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comfyui.errors import StorageError

MIB = 1024 * 1024


def part_beside(target: Path) -> Path:
    """A new temporary name in the target's folder, `.<name>.<random>.part`, so that a rename stays on one disk."""
    # Cut by bytes: the target's own name may already be as long as a name can be.
    name = target.name.encode()[:150].decode(errors="ignore")
    return target.with_name(f".{name}.{secrets.token_hex(6)}.part")


def sync_folder(folder: Path) -> None:
    """Make the renames done in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file that lasts: readers see the old one or the new one, never half of one. Raises OSError."""
    part = part_beside(path)
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def require_room(folder: Path, needed: int, path: str) -> None:
    """Raise StorageError for `path` unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _full(path, f"{needed} bytes", free)


@contextmanager
def room_errors(folder: Path, path: str, needed: str) -> Iterator[None]:
    """Turn a full disk, or a file too large for it, into a StorageError for `path`.

    `needed` says how much was asked for, as in "12 bytes".
    """
    try:
        yield
    except OSError as e:
        if e.errno == errno.EFBIG:
            raise StorageError(
                f"{path} cannot be written: its disk, or a limit of this process, allows no file of that size. "
                "Use another disk.",
                path=path,
                expected=f"{needed} in one file",
                seen="a file that may not grow any more",
            ) from e
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(path, needed, shutil.disk_usage(folder).free) from e


def _full(path: str, needed: str, free: int) -> StorageError:
    return StorageError(
        f"There is no room on the disk for {path}: {needed} are needed, {free} bytes ({free // MIB} MiB) are free. "
        "Free some, or use a machine with a larger disk.",
        path=path,
        expected=f"{needed} free",
        seen=f"{free} bytes free",
    )
