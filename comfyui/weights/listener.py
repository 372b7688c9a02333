"""What a person, or a program, is told while weights move.

Bake, restore and pull speak to a Listener; who shows what, and where, is the listener's business: plain lines here, a
bar or JSON lines in comfyui.local. All methods may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

LINE_EVERY_S = 10.0
"""How often a plain line says how far a long transfer is."""
UNITS = ("bytes", "kB", "MB", "GB", "TB")


class Listener(Protocol):
    """Is told what happens to weights."""

    def say(self, line: str) -> None:
        """A sentence for people."""

    def begin(self, doing: str, files: Sequence[tuple[str, int | None]]) -> None:
        """`doing` ("baking") starts with these files: path and size in bytes, None where nobody knows it."""

    def advance(self, path: str, count: int) -> None:
        """`count` more bytes of a file are here; negative where some have to come again."""

    def proven(self, path: str, size: int, sha256: str) -> None:
        """All bytes of a file are here and right."""

    def end(self) -> None:
        """What `begin` began has ended, well or not."""


class PlainLines:
    """One line for each thing that happens, and one every LINE_EVERY_S seconds while nothing else does."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._doing = ""
        self._total: int | None = 0
        self._done = 0
        self._started = self._said = time.monotonic()

    def say(self, line: str) -> None:
        """Print it."""
        with self._lock:
            self._report(line)

    def begin(self, doing: str, files: Sequence[tuple[str, int | None]]) -> None:
        """Print how much there is to do."""
        sizes = [size for _, size in files if size is not None]
        with self._lock:
            self._doing, self._done = doing, 0
            self._total = sum(sizes) if len(sizes) == len(files) else None
            self._started = self._said = time.monotonic()
            count = f"{len(files)} file{'' if len(files) == 1 else 's'}"
            self._report(f"{doing} {count}, {size_text(self._total)}")

    def advance(self, path: str, count: int) -> None:
        """Print how far it is, now and then."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._said < LINE_EVERY_S:
                return
            self._said = now
            rate = self._done / (now - self._started)
            percent = f" ({100 * self._done // self._total} %)" if self._total else ""
            self._report(f"{self._doing}: {size_text(self._done)}{percent}, {size_text(int(rate))}/s")

    def proven(self, path: str, size: int, sha256: str) -> None:
        """Print the file and what proves it."""
        with self._lock:
            self._report(f"  {path}: {size_text(size)}, sha256 {sha256[:12]}…")

    def end(self) -> None:
        """Print the time and rate of it all."""
        with self._lock:
            seconds = time.monotonic() - self._started
            rate = size_text(int(self._done / seconds)) if seconds > 0 else "-"
            self._report(f"{self._doing} took {seconds:.1f} s ({rate}/s)")


def size_text(size: int | None) -> str:
    """A size in bytes for people, in powers of 1000: "278.3 MB"."""
    if size is None:
        return "size unknown"
    value, unit = float(size), 0
    while abs(value) >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{size} bytes"
