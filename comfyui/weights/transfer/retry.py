"""How long to go on with a piece that fails: as long as bytes come, and a bounded time after the last one. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter; times in seconds.

    A piece is given up after `fruitless_tries` attempts in a row that brought no byte, a file after `restarts`
    beginnings anew, and a server's Retry-After is followed up to `longest_wish_s`.
    """

    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0
    longest_wish_s: float = 120.0
    fruitless_tries: int = 7
    restarts: int = 4
    slow_piece_s: float = 5.0
    """Silence after which a piece is fetched a second time, beside the first, when a worker has nothing else to do."""
    question_waits_s: tuple[float, ...] = (1.0, 4.0)
    """Waits between questions to a server what it knows of a file, while it is busy."""

    def wait_s(self, attempt: int, wish_s: float | None, source: random.Random) -> float:
        """Seconds before the attempt after the `attempt`-th (from 1) fruitless one; a server's wish may make it longer.

        Not shorter: a server that says "0", or names a time that is over, would get all attempts at once.
        """
        backoff_s = source.uniform(0, min(self.longest_wait_s, self.first_wait_s * 2.0 ** (attempt - 1)))
        return max(backoff_s, min(wish_s or 0.0, self.longest_wish_s))
