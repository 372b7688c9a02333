"""Linked weights for a coroutine: threads ask servers and fetch files, and what they say is said where it waits.

They are daemon threads: neither a cancel nor the end of the process waits for a server that says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from comfyui.errors import StoppedError
from comfyui.weights.linked.linked import Asked, Brought, Link, LinkedWeights
from comfyui.weights.linked.shelf import Lease
from comfyui.weights.listener import PlainLines
from comfyui.weights.sources import Tokens

AT_ONCE = 8
LINES_EVERY_S = 0.2
LET_GO_S = 5.0
"""How long a cancelled coroutine waits for its transfers to clean up after themselves; they are told at once."""

T = TypeVar("T")


class LinksFailedError(Exception):
    """Some links gave nothing: `failures` has the reason of each."""

    def __init__(self, failures: Mapping[Link, Exception]) -> None:
        super().__init__(f"{len(failures)} links failed")
        self.failures = failures


class LinkThreads:
    """For one prediction; `say` is called in its coroutine."""

    def __init__(self, weights: LinkedWeights, say: Callable[[str], None]) -> None:
        self._weights = weights
        self._say = say
        self._stop = threading.Event()
        self._lines: SimpleQueue[str] = SimpleQueue()

    async def ask(self, links: Sequence[Link], tokens: Tokens) -> dict[Link, Asked]:
        """What each link gives.

        Raises LinksFailedError that has every link that gives nothing, StorageError for too much together.
        """
        works = {link: partial(self._weights.ask, link, tokens, self._stop) for link in links}
        asked = await self._all(works, let_go_s=0.0)
        self._weights.check_together(asked.values())
        for notice in dict.fromkeys(notice for one in asked.values() for notice in one.notices):
            self._say(notice)
        return asked

    async def bring(self, asked: Mapping[Link, Asked], lease: Lease) -> dict[Link, Brought]:
        """Each file. One failure ends all, as LinksFailedError."""

        def bring(one: Asked) -> Brought:
            try:
                return self._weights.bring(one, lease, PlainLines(self._lines.put), self._stop)
            except BaseException:
                self._stop.set()
                raise

        return await self._all({link: partial(bring, one) for link, one in asked.items()}, let_go_s=LET_GO_S)

    async def _all(self, works: Mapping[Link, Callable[[], T]], *, let_go_s: float) -> dict[Link, T]:
        """What each gives, a few at a time."""
        loop = asyncio.get_running_loop()
        outcomes: dict[Link, asyncio.Future[T | Exception]] = {link: loop.create_future() for link in works}
        waiting = deque(works.items())

        def work() -> None:
            while True:
                try:
                    link, one = waiting.popleft()
                except IndexError:
                    return
                result: T | Exception
                try:
                    result = one()
                except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
                    result = error
                # The loop may have been closed meanwhile.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(outcomes[link].set_result, result)

        for number in range(min(AT_ONCE, len(works))):
            threading.Thread(target=work, name=f"linked-{number}", daemon=True).start()
        pending = set(outcomes.values())
        try:
            while pending:
                _, pending = await asyncio.wait(pending, timeout=LINES_EVERY_S)
                self._pass_on()
        finally:
            if pending:
                self._stop.set()
                await asyncio.wait(pending, timeout=let_go_s)
        return _without_failures({link: outcome.result() for link, outcome in outcomes.items()})

    def _pass_on(self) -> None:
        while True:
            try:
                self._say(self._lines.get_nowait())
            except Empty:
                return


def _without_failures(results: Mapping[Link, T | Exception]) -> dict[Link, T]:
    failures = {link: result for link, result in results.items() if isinstance(result, Exception)}
    if failures:
        # Those that were only stopped are not to blame.
        to_blame = {link: error for link, error in failures.items() if not isinstance(error, StoppedError)}
        raise LinksFailedError(to_blame or failures)
    return {link: result for link, result in results.items() if not isinstance(result, Exception)}
