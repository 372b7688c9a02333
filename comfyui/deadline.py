"""One monotonic deadline, made once and passed down, so that waits inside waits never add up to more."""

from __future__ import annotations

import time

from comfyui.errors import DeadlineError


class Deadline:
    """A point in time `limit_s` seconds after it was made; None means it never comes.

    `doing` and `hint` are words for the error: what was going on, and what the reader can do about it.
    """

    def __init__(self, limit_s: float | None, doing: str, *, hint: str = "") -> None:
        self.limit_s = limit_s
        self.doing = doing
        self.hint = hint
        self._end = None if limit_s is None else time.monotonic() + limit_s

    def remaining_s(self) -> float | None:
        """Seconds left, never below zero; None for a deadline that never comes."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def expired(self) -> bool:
        """True once the time is used up."""
        return self.remaining_s() == 0.0

    def error(self) -> DeadlineError:
        """The error to raise when the time is used up."""
        return DeadlineError(self.doing, self.limit_s or 0.0, hint=self.hint)

    def check(self) -> None:
        """Raise DeadlineError if the time is used up."""
        if self.expired():
            raise self.error()
