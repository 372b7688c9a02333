"""The plain lines a person sees while a large file goes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

LINE_EVERY_S = 10.0
_MB = 1_000_000


def size_text(size: int | None) -> str:
    """A size for people, in MB of 1 000 000 bytes; small ones in bytes; None is unknown."""
    if size is None:
        return "size unknown"
    return f"{size} bytes" if size < _MB else f"{size / _MB:.1f} MB"


class Progress:
    """Reports on one file: a line every ten seconds, and one at its end, which begins with `done` ("baked a/b")."""

    def __init__(self, done: str, size: int | None, report: Callable[[str], None]) -> None:
        self._done = done
        self._size = size
        self._report = report
        self._started = self._last = time.monotonic()
        self._seen = 0

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, counted."""
        for chunk in chunks:
            yield chunk
            self._seen += len(chunk)
            now = time.monotonic()
            if now - self._last >= LINE_EVERY_S:
                self._last = now
                of = "" if self._size is None else f" of {size_text(self._size)}"
                self._report(f"  … {size_text(self._seen)}{of}, {self._speed(now)}")

    def end(self, sha256: str) -> None:
        """Say that the file is complete; its SHA-256 is shown in short."""
        now = time.monotonic()
        self._report(
            f"{self._done}: {size_text(self._seen)} in {now - self._started:.1f} s "
            f"({self._speed(now)}), sha256 {sha256[:12]}…"
        )

    def _speed(self, now: float) -> str:
        return f"{self._seen / _MB / max(now - self._started, 1e-3):.1f} MB/s"
