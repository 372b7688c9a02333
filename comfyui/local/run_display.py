"""What a person sees while a prediction runs: on a terminal one line that moves, elsewhere plain lines.

    the prediction's log ──► its bar (comfyui/engine/progress.py) in place, its other lines above it

A log comes from a server: nothing in it may move the cursor or change the terminal.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from types import TracebackType
from typing import Self, TextIO

from comfyui.local.terminal import can_draw, printable

TICK_S = 1.0
COMFYUIS_OWN = "[comfyui] "
"""How the predictor marks ComfyUI's own lines (comfyui/engine/server.py); people see them on request."""
_BAR = re.compile(r"\s*\d{1,3}%\|.*\| \d+/\d+ ")
_ERASE = "\r\x1b[K"


class RunDisplay:
    """Shows one prediction. Use it as a context manager; `say` and `log` may be called from any thread."""

    def __init__(self, stream: TextIO, *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._draws = can_draw(stream)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="run-display", daemon=True)
        self._start = time.monotonic()
        self._bar = "running"

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if self._draws:
            self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        if self._draws:
            self._ticker.join()
            self._stream.write(_ERASE)
            self._stream.flush()

    def say(self, line: str) -> None:
        """A line of our own; on a terminal it stands above the bar."""
        with self._lock:
            self._print(line)

    def log(self, line: str) -> None:
        """A line of the prediction's log: the bar moves, or it is shown, or it is one of ComfyUI's own."""
        with self._lock:
            if self._draws and _BAR.match(line):
                self._bar = printable(line.rstrip())
                self._draw()
            elif self._verbose or not line.startswith(COMFYUIS_OWN):
                self._print(line)

    def _print(self, line: str) -> None:
        self._stream.write(f"{_ERASE if self._draws else ''}{printable(line)}\n")
        if self._draws and not self._ended.is_set():
            self._draw()
        self._stream.flush()

    def _draw(self) -> None:
        text = f"{time.monotonic() - self._start:4.0f} s  {self._bar}"
        self._stream.write(_ERASE + text[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()

    def _tick(self) -> None:
        while not self._ended.wait(TICK_S):
            with self._lock:
                self._draw()
