"""What a browser does with values, where that shows in a prompt: text, numbers, rounding, key order. Pure.

The rules are ECMAScript's; each function names its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

MAX_INDEX = 2**32 - 2
EXACT_INTEGERS = 2**53


class Unset:
    """The type of UNSET."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()
"""JavaScript's undefined: a value that JSON leaves out, where None is written as null."""


def is_missing(value: object) -> bool:
    """`value == null`: null and undefined alike."""
    return value is None or value is UNSET


def is_truthy(value: object) -> bool:
    """Truthiness: an empty list or object counts as true, NaN as false."""
    if isinstance(value, list | dict):
        return True
    if isinstance(value, float) and math.isnan(value):
        return False
    return value is not UNSET and bool(value)


def to_text(value: object) -> str:
    """String(value), as far as JSON values go."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, list):
        return ",".join("" if is_missing(item) else to_text(item) for item in value)
    if isinstance(value, dict):
        return "[object Object]"
    return "undefined" if value is UNSET else str(value)


def to_number(value: object) -> float | int:
    """Number(value): text is read, null is 0, what is no number is NaN. Whole numbers stay exact."""
    if value is None:
        return 0
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, list):
        value = to_text(value)
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[+-]?\d{1,400}", text):
            return int(text)
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
            return float(text)
        return math.nan if text else 0
    return math.nan


def round_half_up(value: float | int) -> float | int:
    """Math.round: halves go up, also below zero. A whole number is returned as it is, however large."""
    if isinstance(value, int) or not math.isfinite(value) or abs(value) >= EXACT_INTEGERS:
        return value
    floor = math.floor(value)
    return floor + 1 if value - floor >= 0.5 else floor


def to_fixed(value: float | int, digits: int) -> float:
    """Number(value.toFixed(digits)): the exact decimal value rounded, halves away from zero."""
    if not math.isfinite(value) or abs(value) >= 1e21:
        return float(value)
    return float(Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP))


def in_key_order(keys: Iterable[str]) -> list[str]:
    """The order in which an object lists its keys: whole numbers first, ascending, then as they came."""
    every = list(dict.fromkeys(keys))
    numbers = [key for key in every if re.fullmatch(r"0|[1-9]\d{0,9}", key) and int(key) <= MAX_INDEX]
    return sorted(numbers, key=int) + [key for key in every if key not in set(numbers)]


def json_value(value: Any) -> Any:
    """What JSON.stringify makes of a number: NaN and the infinities become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
