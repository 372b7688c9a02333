"""One file on its way: its pieces, which of them have landed, and its hash, fed in order as they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.transfer.buffers import PAGE_BYTES
from comfyui.weights.transfer.target import Target


class Reader(Protocol):
    """Where a file's bytes come from.

    `sequential` says that it can only be read from its beginning, in order, by one worker at a time.
    """

    sequential: bool
    shown: str
    """The source in words for people: a URL without its query, or a file's name."""

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        """Fill `out` with the file's bytes from `start`, yielding the count so far after each portion.

        Raises PieceFault for what may be tried again, an error of comfyui.errors for what may not.
        """
        ...

    def close(self) -> None:
        """Let go of what is open; called at the end of a sequential reader's only use."""
        ...


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `start + length` of a file."""

    index: int
    start: int
    length: int


@dataclass(eq=False)
class FileJob:
    """What to fetch and where to put it: `size` bytes from `reader`, into `target` at `offset`.

    A job is run once; a file that must begin again gets a new one. `on_disk` are the indices of pieces that an earlier,
    killed transfer wrote already: they are read back instead of fetched. `written` is called after each fetched piece
    has been handed to the disk. Safe to use from any thread.
    """

    path: str
    size: int
    reader: Reader
    target: Target
    offset: int
    verifier: Verifier
    on_disk: frozenset[int] = frozenset()
    written: Callable[[Piece], None] = lambda _piece: None
    pieces: list[Piece] = field(init=False, default_factory=list)
    digest: Digest | None = field(init=False, default=None)
    error: Exception | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._claimed: set[int] = set()
        self._writers = 0
        self._landed: dict[int, tuple[memoryview, Callable[[], None]]] = {}
        self._next = 0
        self._hashing = False

    def cut(self, piece_bytes: int) -> None:
        """Cut the file into pieces that end on page boundaries of the target, the last one aside."""
        self.pieces = cut(self.size, self.offset, piece_bytes)

    @property
    def finished(self) -> bool:
        """True once it is proven or has failed."""
        return self.digest is not None or self.error is not None

    def wants(self, piece: Piece) -> bool:
        """Whether this piece is still to be brought by somebody."""
        with self._changed:
            return not self.finished and piece.index not in self._claimed

    def awaits(self, piece: Piece) -> bool:
        """Whether the hash can go no further without this piece."""
        with self._changed:
            return piece.index == self._next

    def claim(self, piece: Piece) -> bool:
        """Whether the caller is the first to have this piece, and must write it and then call `stored`."""
        with self._changed:
            if self.finished or piece.index in self._claimed:
                return False
            self._claimed.add(piece.index)
            self._writers += 1
            return True

    def stored(self) -> None:
        """A claimed piece is written, or its writing failed."""
        with self._changed:
            self._writers -= 1
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """End the job; from now on nobody may claim a piece of it. The first error counts."""
        with self._changed:
            if not self.finished:
                self.error = error
            waiting = [release for _, release in self._landed.values()]
            self._landed.clear()
        for release in waiting:
            release()

    def wait_until_still(self) -> None:
        """Return when nobody writes any more; of a finished job that stays so."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writers)

    def land(self, piece: Piece, data: memoryview, release: Callable[[], None]) -> None:
        """Take a piece for the hash; `release` is called once its memory is not needed any more.

        Whoever brings the piece that is next in order hashes it, and those that wait behind it; others return at once.
        Raises WeightsError when the bytes cannot be the file that was promised.
        """
        with self._changed:
            if self.finished:
                release()
                return
            self._landed[piece.index] = (data, release)
            if self._hashing:
                return
            self._hashing = True
        while True:
            with self._changed:
                if self._next not in self._landed:
                    self._hashing = False
                    return
                ready, ready_release = self._landed.pop(self._next)
            try:
                self.verifier.feed(ready)
            finally:
                ready_release()
            with self._changed:
                self._next += 1
                done = self._next == len(self.pieces)
            if done:
                self.prove()
                return

    def prove(self) -> None:
        """Judge the file, all of whose bytes have been hashed. Raises WeightsError."""
        digest = self.verifier.finish()
        with self._changed:
            if not self.finished:
                self.digest = digest


def cut(size: int, offset: int, piece_bytes: int) -> list[Piece]:
    """The pieces of a file of `size` bytes that lies at `offset`: up to `piece_bytes` each, cut on page boundaries."""
    pieces: list[Piece] = []
    start = 0
    while start < size:
        # The first piece ends where a page of the target does, and so do all that follow.
        length = min(piece_bytes - (offset + start) % PAGE_BYTES, size - start)
        pieces.append(Piece(len(pieces), start, length))
        start += length
    return pieces
