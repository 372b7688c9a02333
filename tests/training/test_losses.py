"""Losses: every pass at full precision, a table that is read back, a curve that is a picture."""

from __future__ import annotations

import csv
import io
import json

import pytest
from PIL import Image

from comfyui.errors import EngineError
from comfyui.training.losses import Losses


def reported(values: object) -> dict[str, list[str]]:
    return {"text": [json.dumps({"loss": values}, indent=4)]}


def test_what_comfyui_shows_is_read_at_full_precision() -> None:
    values = (0.12345678901234567, 1e-9)
    assert Losses.of_output(reported(values)).values == values


@pytest.mark.parametrize(
    "output", [{}, {"text": ["not json"]}, {"text": ['{"loss": ["x"]}']}, {"text": ["[1]"]}, reported([])]
)
def test_another_form_is_an_error(output: dict[str, list[str]]) -> None:
    with pytest.raises(EngineError):
        Losses.of_output(output)


def test_the_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert Losses(tuple([5.0] * 18 + [1.0, 3.0])).final == 2.0
    assert Losses((4.0,)).final == 4.0


def test_the_pass_from_which_on_there_are_no_numbers_is_found() -> None:
    assert Losses((1.0, float("nan"), 2.0, float("nan"), float("inf"))).broken_at() == 4
    assert Losses((1.0, float("inf"))).broken_at() == 2
    assert Losses((1.0, float("nan"), 2.0)).broken_at() is None
    assert Losses((1.0, 2.0)).broken_at() is None
    assert Losses.of_output({"text": ['{"loss": [NaN]}']}).broken_at() == 1


def test_the_table_counts_steps_and_passes() -> None:
    rows = list(csv.DictReader(Losses((0.1, 0.2, 0.3, 0.4)).table(2).decode().splitlines()))
    assert [(row["step"], row["pass"], float(row["loss"])) for row in rows] == [
        ("1", "1", 0.1),
        ("1", "2", 0.2),
        ("2", "3", 0.3),
        ("2", "4", 0.4),
    ]


def test_a_pass_that_overflowed_does_not_count() -> None:
    losses = Losses((float("nan"), *[5.0] * 17, float("inf"), 3.0))
    assert losses.final == 3.0
    assert Losses((float("inf"), 2.0)).final == 2.0


@pytest.mark.parametrize(
    "values",
    [(1.0,), (2.0, 2.0), (0.5, 30.0, 0.2, 0.1), tuple(1 / n for n in range(1, 300)), (float("nan"), 1.0, 2.0)],
)
def test_the_curve_is_a_picture_with_a_line_in_it(values: tuple[float, ...]) -> None:
    data = Losses(values).picture()
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert (31, 78, 140) in {color for _, color in image.getcolors(2**20) or []}
    assert data == Losses(values).picture()
