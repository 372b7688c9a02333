"""One process at a time writes weights into a models folder.

The lock is on the folder itself, so nothing lies about afterwards, and the kernel drops it with the process (flock(2)).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from comfyui.errors import StoppedError, StorageError
from comfyui.weights.listener import Listener

LOCK_WAIT_S = 3600.0
"""How long a restore waits for another one, which may be fetching many GB."""
_LOOK_AGAIN_S = 0.1


@contextmanager
def folder_lock(folder: Path, listener: Listener, stop: Event, *, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock on `folder`, which must exist; waits for whoever has it.

    Raises StorageError after `wait_s` seconds, StoppedError once `stop` is set.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _take(handle, folder, listener, stop, wait_s)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path, listener: Listener, stop: Event, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    waiting = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise StorageError(
                    f"Another process has been writing weights into {folder} for {wait_s:g} s. Stop it, or use another "
                    "models folder.",
                    path=str(folder),
                    expected="nobody else who writes there",
                    seen="another process",
                ) from error
        except OSError as error:
            # Some network file systems have no locks; a restore is right without one as long as it is alone.
            listener.say(f"{folder} cannot be locked ({error.strerror}); let only one process write weights into it")
            return
        if not waiting:
            listener.say(f"another process is writing weights into {folder}; waiting for it")
            waiting = True
        if stop.wait(_LOOK_AGAIN_S):
            raise StoppedError("The restore was stopped while it waited for another one.")
