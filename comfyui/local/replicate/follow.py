"""Follow a run to its end: ask again and again, less often while nothing changes, and show what its log says.

Nothing here waits inside a request: `Prefer: wait` would give up after 60 s, and a cold start takes longer.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from comfyui.local.log_webhook import LogLines
from comfyui.local.replicate.api import Run
from comfyui.local.replicate.failures import RunError, ServiceError
from comfyui.local.terminal import can_draw, printable, printable_line

MAX_POLL_S = {"prediction": 5.0, "training": 15.0}
GROWTH = 1.5
COLD_START_S = 15.0
"""How long a run may be starting before it is said that this is normal."""
_PERCENT = re.compile(r"^\s*(\d{1,3})%\s*\|.*?\|\s*\d+/\d+|\((\d{1,3}) %\)")


class RunView:
    """Shows runs: a line drawn over and over for progress on a terminal, plain lines elsewhere, or JSON lines."""

    def __init__(self, *, as_json: bool, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._out = out if as_json else None
        self._err = err
        self._draws = not as_json and can_draw(err)
        self._drawn = 0

    def status(self, run: Run) -> None:
        """The run has another status than before."""
        self._emit(f"{run.kind} {run.id}: {run.status}", event="status", kind=run.kind, id=run.id, status=run.status)

    def note(self, text: str) -> None:
        """A sentence for people."""
        self._emit(text, event="note", text=text)

    def log(self, line: str) -> None:
        """A line of the run's log."""
        line = printable_line(line)
        percent = percent_of(line)
        if percent is None:
            self._emit(f"  {line}", event="log", text=line)
        elif self._draws:
            shown = f"  {line}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r{shown.ljust(self._drawn)}", end="", file=self._err, flush=True)
            self._drawn = len(shown)
        else:
            self._emit(f"  {line}", event="progress", percent=percent, text=line)

    def close(self) -> None:
        """Take the progress line away."""
        if self._drawn:
            print(f"\r{' ' * self._drawn}\r", end="", file=self._err, flush=True)
            self._drawn = 0

    def _emit(self, line: str, **facts: object) -> None:
        self.close()
        if self._out is not None:
            print(json.dumps(facts), file=self._out, flush=True)
        else:
            print(line, file=self._err, flush=True)


def percent_of(line: str) -> int | None:
    """How far a line of a log says the work is: a prediction's "45%|███| 9/20 …" or a training's "… (31 %) …"."""
    found = _PERCENT.search(line)
    return min(100, int(found[1] or found[2])) if found else None


def follow(
    run: Run,
    ask: Callable[[str], Run],
    view: RunView,
    *,
    first_wait_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Run:
    """The run once it has ended, well or not. `ask` gives it by its id, as it is; waits grow from `first_wait_s`."""
    lines = LogLines(view.log)
    wait_s, status, warned = first_wait_s, "", False
    begun = clock()
    while True:
        if run.status != status:
            status = run.status
            view.status(run)
        lines.feed(run.logs, at_end=run.ended)
        if run.ended:
            view.close()
            return run
        if status == "starting" and not warned and clock() - begun > COLD_START_S:
            warned = True
            view.note("A cold start can take minutes. This command asks again until the run has ended.")
        sleep(wait_s)
        last, run = run, ask(run.id)
        changed = (run.status, run.logs) != (last.status, last.logs)
        wait_s = first_wait_s if changed else min(MAX_POLL_S[run.kind], wait_s * GROWTH)


def need_success(run: Run) -> Run:
    """The run if it succeeded. Raises RunError with its own words for why it did not."""
    if run.status == "succeeded":
        return run
    said = printable(run.error).strip() or "It gives no reason; its log above may."
    what = "was canceled" if run.status == "canceled" else "failed"
    raise RunError(f"The {run.kind} {run.id} {what}. {said}", kind=run.kind, run_id=run.id, status=run.status)


def need_version(run: Run) -> str:
    """The version that a training has made, as owner/name:id. Raises RunError, ServiceError where it names none."""
    version = need_success(run).trained_version
    if version is None:
        raise ServiceError(
            f"The {run.kind} {run.id} succeeded, and names no version. Look at https://replicate.com/trainings.",
            service="Replicate",
        )
    return version
