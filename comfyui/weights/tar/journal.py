"""What of an unfinished tar is surely on the disk, so that the next bake on this machine goes on from there.

A file of JSON lines beside the tar's temporary file: first what is being made (the plan), then one line for each batch
of pieces. A batch is written only after the pieces in it were synced: neither a killed process nor a power cut can
leave a line that says more than the disk holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SYNC_EVERY_S = 2.0
"""How much work a kill may cost, in seconds."""
VERSION = 1
_NONE = -1
"""In place of a piece: none of the file's counts."""


@dataclass(frozen=True)
class JournalFile:
    """A file of the plan, by everything that must be the same for its pieces to be of use again.

    `validator` and `sha256` say which version of the file it is; without either its pieces are not used again.
    """

    path: str
    url: str | None
    size: int
    offset: int
    validator: str | None
    sha256: str | None


class Journal:
    """The journal at `path` of the plan `files`, cut into pieces of `piece_bytes`. `sync` makes what was written last.

    Safe to use from any thread.
    """

    def __init__(self, path: Path, files: Sequence[JournalFile], piece_bytes: int, sync: Callable[[], None]) -> None:
        self.path = path
        self._files = files
        self._plan = {"version": VERSION, "piece_bytes": piece_bytes, "files": [asdict(file) for file in files]}
        self._sync = sync
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int]] = []
        self._forgotten: set[int] = set()
        self._synced = time.monotonic()
        self._fd: int | None = None

    def begin(self, *, usable: bool) -> dict[str, frozenset[int]]:
        """Go on with the journal that is there if it is of this plan and `usable`, else start one.

        Returns the indices of the pieces that are on the disk already, by the path of their file.
        """
        known = self._read() if usable else None
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if known is not None else os.O_TRUNC)
        self._fd = os.open(self.path, flags, 0o644)
        if known is None:
            self._append(self._plan)
            # Before anything is written where the old journal, if a power cut brought it back, says that data lies.
            os.fsync(self._fd)
            return {}
        # A line that a kill cut short must not grow together with the next one.
        os.write(self._fd, b"\n")
        return {
            file.path: frozenset(index for number, index in known if number == position)
            for position, file in enumerate(self._files)
            if file.validator or file.sha256
        }

    def add(self, file: int, piece: int) -> None:
        """Piece `piece` of the plan's file number `file` was written; now and then this syncs and makes it count."""
        with self._lock:
            if file in self._forgotten:
                return
            self._waiting.append((file, piece))
            if time.monotonic() - self._synced < SYNC_EVERY_S:
                return
            batch, self._waiting = self._waiting, []
            self._synced = time.monotonic()
        self._sync()
        with self._lock:
            self._append([entry for entry in batch if entry[0] not in self._forgotten])

    def forget(self, file: int) -> None:
        """File number `file` begins again, perhaps as another version than the plan's: none of its pieces counts."""
        with self._lock:
            self._forgotten.add(file)
            self._append([(file, _NONE)])
            if self._fd is not None:
                os.fsync(self._fd)

    def close(self) -> None:
        """Make what was added count, and close the journal. On a disk that cannot even sync, that work is forgotten."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        if batch and self._fd is not None:
            with contextlib.suppress(OSError):
                self._sync()
                self._append([entry for entry in batch if entry[0] not in self._forgotten])
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _append(self, value: Any) -> None:
        if self._fd is not None:
            os.write(self._fd, (json.dumps(value) + "\n").encode())

    def _read(self) -> set[tuple[int, int]] | None:
        """The pieces that are recorded, None if there is no journal of this plan."""
        try:
            first, *lines = self.path.read_bytes().split(b"\n")
            if json.loads(first) != self._plan:
                return None
        except (FileNotFoundError, ValueError):
            return None
        pieces: set[tuple[int, int]] = set()
        for line in lines:
            try:
                pieces.update((int(file), int(piece)) for file, piece in json.loads(line or b"[]"))
            except (ValueError, TypeError):
                continue  # The line that was being written when the process was killed.
        forgotten = {file for file, piece in pieces if piece == _NONE}
        return {(file, piece) for file, piece in pieces if file not in forgotten}
