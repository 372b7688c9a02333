"""The losses of a training: read from ComfyUI, drawn, and written as a table. Pure.

PreviewAny shows TrainLoraNode's LOSS_MAP as JSON: `{"loss": [...]}`, the loss of every forward and backward pass at
full precision, in order. (Its progress bar, from which the log's lines come, has four digits of it.)
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from comfyui.errors import EngineError

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

    @property
    def final(self) -> float:
        """The mean over the last tenth of the passes."""
        return self.smooth()[-1]

    def broken_at(self) -> int | None:
        """The first pass, from 1, whose loss is no number any more; None if there is none."""
        return next((number for number, value in enumerate(self.values, 1) if not math.isfinite(value)), None)

    def smooth(self) -> list[float]:
        """For each pass the mean of the last tenth of all passes up to it."""
        window = max(1, round(len(self.values) * WINDOW))
        sums = [0.0]
        for value in self.values:
            sums.append(sums[-1] + value)
        return [(sums[end] - sums[max(0, end - window)]) / min(end, window) for end in range(1, len(sums))]

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
        # A few passes at full noise tower above all others; what they do to the scale would flatten the curve.
        top = min(max(self.values), 1.5 * max(smooth))
        low = min(self.values)
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


def _points(values: Sequence[float], low: float, top: float) -> list[tuple[float, float]]:
    # A single pass is drawn as a level line.
    values = values if len(values) > 1 else [*values, *values]
    across, down = _WIDTH - _MARGIN - 10, _HEIGHT - 40
    height = (top - low) or 1.0
    return [
        (_MARGIN + across * index / (len(values) - 1), 10 + down * (1 - (min(value, top) - low) / height))
        for index, value in enumerate(values)
    ]
