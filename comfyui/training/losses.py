"""The losses of a training: read from ComfyUI, drawn, and written as a table. Pure.

PreviewAny shows TrainLoraNode's LOSS_MAP as JSON: `{"loss": [...]}`, the loss of every forward and backward pass at
full precision, in order. (Its progress bar, from which the log's lines come, has four digits of it.)
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from comfyui.errors import EngineError, TrainingInputError
from comfyui.training.parameters import TrainingParameters

WINDOW = 0.1
"""The final loss, and each point of the smooth curve, is the mean over this part of the passes: a single one mostly
says how much noise its picture happened to get."""
_WIDTH, _HEIGHT, _MARGIN = 800, 400, 56
_FAINT, _STRONG, _INK = (176, 196, 222), (31, 78, 140), (60, 60, 60)


@dataclass(frozen=True)
class Losses:
    """The loss of every pass, in order."""

    values: tuple[float, ...]

    @classmethod
    def of_output(cls, output: Mapping[str, Any]) -> Losses:
        """What the PreviewAny node of a training reported. Raises EngineError when it is not a list of losses."""
        try:
            values = json.loads("".join(output["text"]))["loss"]
            losses = cls(tuple(float(value) for value in values))
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"ComfyUI gave the losses of the training in a form that cannot be read: {error}."
            ) from error
        if not losses.values:
            raise EngineError("ComfyUI gave no losses of the training.")
        return losses

    def then(self, more: Losses) -> Losses:
        """These, and those of the passes that came after them."""
        return Losses((*self.values, *more.values))

    @property
    def final(self) -> float:
        """The mean over the last tenth of the passes."""
        return self.smooth()[-1]

    def broken_at(self) -> int | None:
        """The first pass, from 1, from which on no loss is a number; None if the last one is.

        In fp16, a pass may overflow without harm: its step is left out (torch.amp.GradScaler).
        """
        numbers = sum(1 for _ in itertools.dropwhile(lambda value: not math.isfinite(value), reversed(self.values)))
        return None if numbers == len(self.values) else numbers + 1

    def smooth(self) -> list[float]:
        """For each pass the mean of the last tenth of all passes up to it, without those whose loss is no number."""
        window = max(1, round(len(self.values) * WINDOW))
        sums, counts = [0.0], [0]
        for value in self.values:
            finite = math.isfinite(value)
            sums.append(sums[-1] + (value if finite else 0.0))
            counts.append(counts[-1] + finite)
        spans = [(max(0, end - window), end) for end in range(1, len(sums))]
        return [
            (sums[end] - sums[start]) / (counts[end] - counts[start]) if counts[end] > counts[start] else math.nan
            for start, end in spans
        ]

    def table(self, grad_accumulation_steps: int) -> bytes:
        """CSV (RFC 4180) with one row for each pass: step of the optimizer, pass, loss, and the smooth loss."""
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["step", "pass", "loss", "smooth_loss"])
        for index, (value, mean) in enumerate(zip(self.values, self.smooth(), strict=True)):
            rows.writerow([index // grad_accumulation_steps + 1, index + 1, repr(value), f"{mean:.6g}"])
        return text.getvalue().encode()

    def picture(self) -> bytes:
        """A PNG of the curve: each pass faint, the smooth loss strong."""
        image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
        draw = ImageDraw.Draw(image)
        smooth = self.smooth()
        finite = [value for value in self.values if math.isfinite(value)]
        # A few passes at full noise tower above all others; what they do to the scale would flatten the curve.
        top = min(max(finite), 1.5 * max(filter(math.isfinite, smooth)))
        low = min(finite)
        draw.line(_points(self.values, low, top), fill=_FAINT)
        draw.line(_points(smooth, low, top), fill=_STRONG, width=2)
        draw.line([(_MARGIN, 10), (_MARGIN, _HEIGHT - 30), (_WIDTH - 10, _HEIGHT - 30)], fill=_INK)
        draw.text((4, 10), f"{top:.4g}", fill=_INK)
        draw.text((4, _HEIGHT - 40), f"{low:.4g}", fill=_INK)
        draw.text(
            (_MARGIN, _HEIGHT - 22), f"loss of {len(self.values)} passes, mean at the end {self.final:.4g}", fill=_INK
        )
        data = io.BytesIO()
        image.save(data, "PNG")
        return data.getvalue()


def broken(at: int, parameters: TrainingParameters) -> TrainingInputError:
    """The error for a training whose losses are no numbers from pass `at`, from 1, on."""
    return TrainingInputError(
        f"The training broke: from pass {at} of {parameters.passes} on, its loss is not a number. Give a smaller "
        f"learning_rate than {parameters.learning_rate:g}, or training_dtype bf16 or fp32.",
        input_name="learning_rate",
    )


def _points(values: Sequence[float], low: float, top: float) -> list[tuple[float, float]]:
    # A single pass is drawn as a level line.
    values = values if len(values) > 1 else [*values, *values]
    across, down = _WIDTH - _MARGIN - 10, _HEIGHT - 40
    height = (top - low) or 1.0
    return [
        (_MARGIN + across * index / (len(values) - 1), 10 + down * (1 - (min(value, top) - low) / height))
        for index, value in enumerate(values)
        if math.isfinite(value)
    ]
