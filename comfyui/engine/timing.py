"""Where the seconds of a run went, from its events. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

from comfyui.engine.events import Event, Executing, ExecutionStart


class RunTimes:
    """Follows one prompt from the moment it is made; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._submitted = clock()
        self._started: float | None = None
        self._ended: float | None = None
        self._node: tuple[str, float] | None = None
        self._nodes: dict[str, float] = {}

    def see(self, event: Event) -> None:
        """Take the next event."""
        now = self._clock()
        match event:
            case ExecutionStart():
                self._started = now
            case Executing(node_id=node_id):
                self._end_node(now)
                if node_id is None:
                    self._ended = now
                else:
                    self._node = (node_id, now)
            case _:
                return

    @property
    def queue_s(self) -> float:
        """Seconds until ComfyUI took the prompt."""
        return (self._started or self._clock()) - self._submitted

    @property
    def execution_s(self) -> float:
        """Seconds ComfyUI worked on it."""
        return (self._ended or self._clock()) - (self._started or self._submitted)

    @property
    def node_s(self) -> dict[str, float]:
        """Seconds in each node that ran, by node id, in milliseconds' precision."""
        return {node: round(seconds, 3) for node, seconds in self._nodes.items()}

    def _end_node(self, now: float) -> None:
        if self._node is not None:
            node, since = self._node
            self._nodes[node] = self._nodes.get(node, 0.0) + now - since
            self._node = None
