"""A bounded number of page-aligned buffers: what is fetched lives in one until it is written and hashed.

Their number bounds the memory of a transfer whatever its size. Page alignment is what O_DIRECT asks of memory.
"""

from __future__ import annotations

import mmap
import queue
import threading

PAGE_BYTES = 4096


class Buffer:
    """`PAGE_BYTES` more than `size` bytes of page-aligned memory, so that data can be placed as it lies in a page."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size + PAGE_BYTES)
        self.view = memoryview(self._memory)


class BufferPool:
    """`count` buffers for pieces of up to `size` bytes each. Safe to use from any thread."""

    def __init__(self, count: int, size: int) -> None:
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(Buffer(size))

    def take(self, stop: threading.Event) -> Buffer | None:
        """A free buffer, waited for; None once `stop` is set."""
        while not stop.is_set():
            try:
                return self._free.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def give_back(self, buffer: Buffer) -> None:
        """Let others have it; its content is gone."""
        self._free.put(buffer)
