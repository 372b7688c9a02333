"""What a long command on weights shows: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

    people      progress and sentences ──► stderr       results ──► stdout
    programs    everything ──► stdout, one JSON object on each line (--json)

No colours anywhere: nothing has to be stripped from a log.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from comfyui.process import ANSI_SEQUENCE
from comfyui.weights.listener import Listener, PlainLines

EVENT_EVERY_S = 0.5
"""How often JSON lines say how far a transfer is."""
_BAR = "{percentage:3.0f} % |{bar:16}| {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left: {desc}"
_BAR_WITHOUT_END = "{n_fmt}B, {rate_fmt}, {elapsed} so far: {desc}"


class Bar(PlainLines):
    """One bar for all files at once, with rate, time left and what is moving; sentences go above it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(self._print)
        self._stream = stream
        self._bar: Any = None
        # In the order of their first bytes: the oldest one is what a person is waiting for.
        self._moving: dict[str, None] = {}

    def begin(self, doing: str, files: Sequence[tuple[str, int | None]]) -> None:
        """Say how much there is to do, and draw the bar."""
        super().begin(doing, files)
        with self._lock:
            self._moving.clear()
            # Neither tqdm's watching thread nor its lock between processes: there is one process and one bar.
            tqdm.monitor_interval = 0
            tqdm.set_lock(threading.RLock())
            self._bar = tqdm(
                total=self._total,
                bar_format=_BAR if self._total is not None else _BAR_WITHOUT_END,
                unit="B",
                unit_scale=True,
                file=self._stream,
                dynamic_ncols=True,
                miniters=1,
                smoothing=0.1,
                leave=False,
            )

    def advance(self, path: str, count: int) -> None:
        """Move the bar."""
        with self._lock:
            self._done += count
            self._moving.setdefault(path)
            if self._bar is not None:
                self._bar.set_description_str(self._moving_text(), refresh=False)
                self._bar.update(count)

    def proven(self, path: str, size: int, sha256: str) -> None:
        """Say so above the bar."""
        with self._lock:
            self._moving.pop(path, None)
        super().proven(path, size, sha256)

    def end(self) -> None:
        """Take the bar away, and say how long it took."""
        self.close()
        super().end()

    def close(self) -> None:
        """Take the bar away, whatever has happened; harmless when there is none."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _moving_text(self) -> str:
        first = next(iter(self._moving))
        return first + (f" and {len(self._moving) - 1} more" if len(self._moving) > 1 else "")

    def _print(self, line: str) -> None:
        if self._bar is not None:
            tqdm.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)


class JsonLines:
    """Every event as one JSON object on a line of its own; docs/weights.md has their table."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._doing = ""
        self._total: int | None = 0
        self._done = 0
        self._started = self._said = time.monotonic()

    def emit(self, event: str, facts: Mapping[str, Any]) -> None:
        """Print an event that is none of a Listener's."""
        with self._lock:
            self._write(event, facts)

    def say(self, line: str) -> None:
        """A "note"."""
        self.emit("note", {"text": line})

    def begin(self, doing: str, files: Sequence[tuple[str, int | None]]) -> None:
        """A "begin", with the files and their sizes."""
        listed = [{"path": path, "size": size} for path, size in files]
        sizes = [size for _, size in files if size is not None]
        with self._lock:
            self._doing, self._done = doing, 0
            self._total = sum(sizes) if len(sizes) == len(files) else None
            self._started = self._said = time.monotonic()
            self._write("begin", {"doing": doing, "bytes": self._total, "files": listed})

    def advance(self, path: str, count: int) -> None:
        """An "advance", not more often than every EVENT_EVERY_S seconds."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._said < EVENT_EVERY_S:
                return
            self._said = now
            rate = int(self._done / (now - self._started))
            facts = {"doing": self._doing, "path": path, "done": self._done, "bytes": self._total, "rate": rate}
            self._write("advance", facts)

    def proven(self, path: str, size: int, sha256: str) -> None:
        """A "proven"."""
        self.emit("proven", {"path": path, "size": size, "sha256": sha256})

    def end(self) -> None:
        """An "end", with the bytes that came and the seconds they took."""
        with self._lock:
            seconds = round(time.monotonic() - self._started, 3)
            self._write("end", {"doing": self._doing, "done": self._done, "seconds": seconds})

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        print(json.dumps({"event": event, **facts}), file=self._stream, flush=True)


class Console:
    """Where a command's words go; `listener` is for what moves weights. Use it as a context manager."""

    def __init__(self, *, as_json: bool, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._out = out
        self._err = err
        self._events = JsonLines(out) if as_json else None
        self._bar = Bar(err) if not as_json and can_draw(err) else None
        self.listener: Listener = self._events or self._bar or PlainLines(self._to_err)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as a person expects it."""
        if self._bar is not None:
            self._bar.close()

    def result(self, lines: Sequence[str], facts: Mapping[str, Any]) -> None:
        """What the command was called for: `lines` for people, `facts` for programs."""
        self._say_out(lines, "result", facts)

    def problem(self, line: str, facts: Mapping[str, Any]) -> None:
        """Something that is wrong, found while looking on."""
        self._say_out([line], "problem", facts)

    def error(self, text: str, facts: Mapping[str, Any]) -> None:
        """Why the command ends without a result; `facts` begin with the error's name."""
        self.close()
        if self._events is not None:
            self._events.emit("error", {**facts, "message": text})
        else:
            print(f"\n{text}", file=self._err, flush=True)

    def _say_out(self, lines: Sequence[str], event: str, facts: Mapping[str, Any]) -> None:
        if self._events is not None:
            self._events.emit(event, facts)
            return
        self.close()
        for line in lines:
            print(line, file=self._out, flush=True)

    def _to_err(self, line: str) -> None:
        print(line, file=self._err, flush=True)


def can_draw(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a line on this stream can be drawn over: a terminal that can move its cursor."""
    return stream.isatty() and environ.get("TERM", "dumb") != "dumb"


def printable(text: str) -> str:
    """Words from elsewhere without colours and control characters, which could move a cursor; lines stay lines."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in ANSI_SEQUENCE.sub("", text))


def printable_line(text: str) -> str:
    """The same for what must stay one line: a line of a log, a detail in a sentence."""
    return printable(text).replace("\n", " ").replace("\t", " ").rstrip()
