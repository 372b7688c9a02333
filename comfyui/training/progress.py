"""How far a LoRA training is: from ComfyUI's events and its progress bar to steps with their loss.

The loss is only on the bar that TrainLoraNode draws on stderr, for every pass:
`Training LoRA:  45%|████▌     | 9/20 [00:01<00:01,  8.1it/s, loss=0.1234]`. Events count the passes, too, but come only
every half percent, which may be minutes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from comfyui.engine.events import Event, Executing, Progress
from comfyui.engine.follow import LogLine
from comfyui.engine.server import engine_log_line
from comfyui.training.graph import TRAIN
from comfyui.training.losses import broken
from comfyui.training.parameters import TrainingParameters

LINE_EVERY_S = 1.0
BROKEN_LINES = 10
"""So many losses in a row that are no numbers, and the rest of the training would be paid for in vain."""
BAR_CHARS = 10
_BAR = re.compile(r"\d+%\|.*\|")
_LOSS = re.compile(r"^Training LoRA:.*\| *(\d+)/\d+ .*\bloss=([-+.\w]+)")


class Report(Protocol):
    """Is told how a training goes."""

    def say(self, line: str) -> None:
        """A sentence for people."""

    def step(self, done: int, total: int, loss: float | None) -> None:
        """`done` of `total` passes are done; `loss` is that of about the last one, None before the first."""


class PlainReport:
    """A line for every sentence, and one a second for steps, in the form that clients of Replicate's API read:
    `  45%|████      | 9/20 loss 0.1234`.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said = float("-inf")

    def say(self, line: str) -> None:
        """Print it."""
        self._say(line)

    def step(self, done: int, total: int, loss: float | None) -> None:
        """Print how far it is, now and then, and at the end."""
        now = self._clock()
        if now - self._said < LINE_EVERY_S and done < total:
            return
        self._said = now
        bar = ("█" * (done * BAR_CHARS // total)).ljust(BAR_CHARS)
        self._say(f"{done * 100 // total:3d}%|{bar}| {done}/{total}{'' if loss is None else f' loss {loss:.4g}'}")


class TrainingProgress:
    """Follows one training, or a stage of one that has `before` passes behind it; `prompt` is its graph, `parameters`
    are those of the whole. Give `observe` to Engine.run.
    """

    def __init__(
        self,
        prompt: Mapping[str, Mapping[str, object]],
        parameters: TrainingParameters,
        report: Report,
        before: int = 0,
    ) -> None:
        self._report = report
        self._parameters = parameters
        self._before = before
        self._done = before
        self._broken: list[int] = []
        self._encoders = {node_id for node_id, node in prompt.items() if node["class_type"] == "VAEEncode"}
        self._encoded = 0
        self._said = float("-inf")
        self._loss: float | None = None

    def observe(self, item: Event | LogLine) -> None:
        """Take an event or a line of ComfyUI's log. Raises TrainingInputError once the numbers have exploded."""
        match item:
            case LogLine(text=text):
                self._line(text)
            case Executing(node_id=str(node)) if node in self._encoders:
                self._encoded += 1
                self._say_encoded()
            case Executing(node_id=node) if node == TRAIN and not self._before:
                self._report.say("Training begins.")
            case Progress(node_id=node, value=value) if node == TRAIN:
                self._step(int(value))
            case _:
                return

    def _line(self, text: str) -> None:
        if found := _LOSS.search(text):
            try:
                self._loss = float(found[2])
            except ValueError:
                return
            done = int(found[1])
            self._broken = [] if math.isfinite(self._loss) else [*self._broken, self._before + done + 1]
            if len(self._broken) >= BROKEN_LINES:
                raise broken(self._broken[0], self._parameters)
            self._step(done)
        elif not _BAR.search(text):
            self._report.say(engine_log_line(text))

    def _step(self, done: int) -> None:
        done += self._before
        if done > self._done:
            self._done = done
            self._report.step(done, self._parameters.passes, self._loss)

    def _say_encoded(self) -> None:
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_S or self._encoded == len(self._encoders):
            self._said = now
            self._report.say(f"Encoding image {self._encoded} of {len(self._encoders)}")
