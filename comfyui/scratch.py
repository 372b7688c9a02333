"""Folders below DATA_DIR that somebody must clear up: those of runs, and those of files that Cog gives back."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

KEPT_S = 3600.0
"""How long delivered files stay on disk: long enough for any upload of a tar of weights."""


def new_output_folder(parent: Path, kept_s: float = KEPT_S) -> Path:
    """A fresh folder for what one prediction or training gives back.

    Cog reads or uploads them after run() has returned and never deletes them, so folders older than `kept_s` seconds
    go now.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.iterdir():
        # Another prediction may be sweeping, too.
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > kept_s:
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent))


_LOCKS: dict[Path, int] = {}
"""The file numbers of the locks that this process holds, by run folder."""
_LOCK = ".lock"


def new_run_dir(runs: Path) -> Path:
    """A folder below `runs` for a ComfyUI or a training of this process; what ended processes left there goes now.

    A lock in it says that it is in use, until `remove_run_dir` or the end of this process. A process id could not: a
    container counts its own, and begins anew when it is started again.
    """
    runs.mkdir(parents=True, exist_ok=True)
    for old in runs.glob("engine-*"):
        _remove_if_left(old)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=runs))
    lock = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    # On a disk without locks nobody removes it but its owner.
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX)
    # Under its own name only now: who finds a folder without a lock takes it for left over.
    folder = new.rename(runs / f"engine-{new.name.removeprefix('.new-')}")
    _LOCKS[folder] = lock
    return folder


def remove_run_dir(folder: Path) -> None:
    """Remove a folder that `new_run_dir` gave, and all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _LOCKS.pop(folder, None)) is not None:
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(lock)
