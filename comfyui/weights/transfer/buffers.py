"""A bounded number of page-aligned buffers: what is fetched lives in one until it is written and hashed.

Their number bounds the memory of a transfer whatever its size. Page alignment is what O_DIRECT asks of memory.
"""

from __future__ import annotations

import mmap
import queue
from collections.abc import Callable

PAGE_BYTES = 4096


class Buffer:
    """`PAGE_BYTES` more than `size` bytes of page-aligned memory, so that data can be placed as it lies in a page."""

    def __init__(self, size: int, *, in_reserve: bool = False) -> None:
        # Memory that nobody writes to costs nothing: the reserve is free until it is needed.
        self._memory = mmap.mmap(-1, size + PAGE_BYTES)
        self.view = memoryview(self._memory)
        self.in_reserve = in_reserve


class BufferPool:
    """`count` buffers for pieces of up to `size` bytes each, and `reserve` more. Safe to use from any thread.

    The reserve is for pieces that all others wait for: with none of it, a piece that hangs while everything behind it
    has landed would hold every buffer, and nobody could fetch it over another connection.
    """

    def __init__(self, count: int, size: int, *, reserve: int = 0) -> None:
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        self._reserve: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(Buffer(size))
        for _ in range(reserve):
            self._reserve.put(Buffer(size, in_reserve=True))

    def take(self, timeout_s: float) -> Buffer | None:
        """A free buffer, waited for; None when none came free in time."""
        try:
            return self._free.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def take_reserve(self) -> Buffer | None:
        """One of the reserve, None if all are in use."""
        try:
            return self._reserve.get_nowait()
        except queue.Empty:
            return None

    def give_back(self, buffer: Buffer) -> None:
        """Let others have it; its content is gone."""
        (self._reserve if buffer.in_reserve else self._free).put(buffer)


class Loan:
    """A buffer in a worker's hands: given back once, by the worker or by whoever it was lent on to."""

    def __init__(self, pool: BufferPool, buffer: Buffer) -> None:
        self._pool = pool
        self.begin(buffer)

    def begin(self, buffer: Buffer) -> None:
        """Hold another buffer; the one before was lent or given back."""
        self.buffer = buffer
        self._held = True

    def lend(self) -> Callable[[], None]:
        """Hand the buffer on; what is returned gives it back."""
        self._held = False
        buffer = self.buffer
        return lambda: self._pool.give_back(buffer)

    def end(self) -> None:
        """Give the buffer back."""
        self._held = False
        self._pool.give_back(self.buffer)

    def end_unless_lent(self) -> None:
        """Give it back if it is still in the worker's hands."""
        if self._held:
            self.end()
