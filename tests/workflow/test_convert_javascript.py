"""Values as a browser has them; the expected ones were read off one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from comfyui.workflow.convert.javascript import (
    UNSET,
    in_key_order,
    is_truthy,
    json_value,
    round_half_up,
    to_fixed,
    to_number,
    to_text,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (7.0, "7"),
        (0.1, "0.1"),
        ("x", "x"),
        ([1, None, "a", [2.0]], "1,,a,2"),
        ({"a": 1}, "[object Object]"),
        (UNSET, "undefined"),
    ],
)
def test_to_text(value: Any, text: str) -> None:
    assert to_text(value) == text


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, 0),
        (True, 1),
        (2**64 - 1, 2**64 - 1),
        (" 12 ", 12),
        ("1.5e1", 15.0),
        (".5", 0.5),
        ("", 0),
        ("-3", -3),
        ([1], 1),
    ],
)
def test_to_number(value: Any, number: float) -> None:
    assert to_number(value) == number


@pytest.mark.parametrize("value", ["abc", "1_0", [1, 2], {}, UNSET])
def test_what_is_no_number(value: Any) -> None:
    assert math.isnan(to_number(value))


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.5, 1), (1.5, 2), (2.5, 3), (-0.5, 0), (-1.5, -1), (0.49999999999999994, 0), (3, 3), (1e300, 1e300)],
)
def test_halves_go_up(value: float, rounded: float) -> None:
    assert round_half_up(value) == rounded


@pytest.mark.parametrize(
    ("value", "digits", "fixed"),
    [(4.25, 1, 4.3), (1.005, 2, 1.0), (-4.25, 1, -4.3), (2.5, 0, 3.0), (1e22, 1, 1e22), (math.inf, 1, math.inf)],
)
def test_to_fixed(value: float, digits: int, fixed: float) -> None:
    assert to_fixed(value, digits) == fixed


@pytest.mark.parametrize("value", [None, UNSET, 0, 0.0, "", False, math.nan])
def test_what_is_false(value: Any) -> None:
    assert not is_truthy(value)


@pytest.mark.parametrize("value", [[], {}, "0", -1, True])
def test_what_is_true(value: Any) -> None:
    assert is_truthy(value)


def test_keys_that_are_numbers_come_first_in_ascending_order() -> None:
    assert in_key_order(["b", "10", "a", "9", "01", "-1", "9"]) == ["9", "10", "b", "a", "01", "-1"]


def test_json_has_no_nan() -> None:
    assert [json_value(value) for value in (math.nan, math.inf, 1.5, "x")] == [None, None, 1.5, "x"]


def test_unset_says_what_it_is() -> None:
    assert repr(UNSET) == "UNSET"
