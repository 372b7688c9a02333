"""One point in time, passed down."""

from __future__ import annotations

import time

import pytest

from comfyui.deadline import Deadline
from comfyui.errors import DeadlineError


def test_a_deadline_runs_down_to_zero_and_not_below() -> None:
    started = time.monotonic()
    deadline = Deadline(0.05, "Waiting")
    left = [deadline.remaining_s()]
    while not deadline.expired():
        deadline_left = deadline.remaining_s()
        assert deadline_left is not None
        left.append(deadline_left)
        assert time.monotonic() - started < 5
    assert time.monotonic() - started >= 0.05
    assert left == sorted(left, key=lambda value: value or 0.0, reverse=True)
    assert deadline.remaining_s() == 0.0


def test_time_left_is_no_error() -> None:
    deadline = Deadline(60, "Waiting")
    deadline.check()
    assert not deadline.expired()
    assert 59 < (deadline.remaining_s() or 0) <= 60


def test_a_deadline_without_limit_never_comes() -> None:
    deadline = Deadline(None, "Waiting")
    deadline.check()
    assert deadline.remaining_s() is None
    assert not deadline.expired()


@pytest.mark.parametrize(
    ("limit_s", "hint", "message"),
    [
        (0, "", "Starting ComfyUI took longer than the 0 s it was given."),
        (1e-9, "X gives it longer.", "Starting ComfyUI took longer than the 1e-09 s it was given. X gives it longer."),
    ],
)
def test_a_deadline_that_has_come_raises_with_what_went_on_and_the_hint(
    limit_s: float, hint: str, message: str
) -> None:
    deadline = Deadline(limit_s, "Starting ComfyUI", hint=hint)
    while not deadline.expired():
        time.sleep(0)
    with pytest.raises(DeadlineError) as caught:
        deadline.check()
    assert str(caught.value) == message
    assert (caught.value.doing, caught.value.limit_s) == ("Starting ComfyUI", limit_s)
