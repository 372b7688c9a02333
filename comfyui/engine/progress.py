"""How far a run is, in lines that clients of Replicate's API know how to read. Pure.

The form is tqdm's, `45%|████▌     | 9/20 …`: the percent and the two numbers at its start are what those clients look
for in a prediction's logs. The numbers count nodes; the percent also knows how far the node at work is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from comfyui.engine.events import Event, Executing, ExecutionCached, ExecutionSuccess, Progress

BAR_CHARS = 10
BLOCKS = " ▏▎▍▌▋▊▉█"
LINE_EVERY_S = 1.0
"""How often the steps inside one node make a line."""


class RunProgress:
    """Follows one prompt. `titles` has every node that may run, by id; `clock` gives seconds."""

    def __init__(self, titles: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._titles = titles
        self._clock = clock
        self._done: set[str] = set()
        self._now: str | None = None
        self._inside = 0.0
        self._said = float("-inf")
        self._percent = 0

    @property
    def node_id(self) -> str | None:
        """The node at work, None before the first and after the last."""
        return self._now

    def line(self, event: Event) -> str | None:
        """The line that this event is worth, if any."""
        match event:
            case ExecutionCached(node_ids=node_ids):
                self._done.update(node for node in node_ids if node in self._titles)
                return None
            case Executing(node_id=str(node_id)):
                self._finish_node()
                self._now, self._inside = node_id, 0.0
                return self._say(self._title(node_id))
            case Progress(node_id=str(node_id), value=value, maximum=maximum) if maximum > 0:
                self._inside = min(1.0, value / maximum)
                if self._clock() - self._said < LINE_EVERY_S and value < maximum:
                    return None
                return self._say(f"{self._title(node_id)}, step {value:g} of {maximum:g}")
            case ExecutionSuccess():
                self._done.update(self._titles)
                self._now, self._inside = None, 0.0
                return self._say("done")
            case _:
                return None

    def _finish_node(self) -> None:
        if self._now is not None and self._now in self._titles:
            self._done.add(self._now)

    def _title(self, node_id: str) -> str:
        # Nodes that a node makes while it runs are called after it: "5.0.1".
        return self._titles.get(node_id) or self._titles.get(node_id.split(".", 1)[0], f"node {node_id}")

    def _say(self, what: str) -> str:
        self._said = self._clock()
        done, total = len(self._done), max(1, len(self._titles))
        fraction = min(1.0, (done + self._inside) / total)
        # A node that is made while it runs does not turn the bar back.
        self._percent = max(self._percent, int(fraction * 100))
        return f"{self._percent:3d}%|{_bar(fraction)}| {done}/{total} {what}"


def _bar(fraction: float) -> str:
    eighths = round(fraction * BAR_CHARS * 8)
    full, rest = divmod(eighths, 8)
    return (BLOCKS[8] * full + (BLOCKS[rest] if full < BAR_CHARS else "")).ljust(BAR_CHARS)[:BAR_CHARS]
