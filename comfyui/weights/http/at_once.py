"""Questions to many servers at once, in a way that Ctrl-C can end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

ASKED_AT_ONCE = 8


def at_once(
    ask: Callable[[Item], Answer], items: Iterable[Item], *, asked_at_once: int = ASKED_AT_ONCE
) -> list[Answer]:
    """`ask` of each item, `asked_at_once` at a time; the answers in the items' order.

    Raises what `ask` raised for the first item that failed. Daemon threads, not a pool that waits for its threads:
    Ctrl-C, or the end of the program, must not wait for a server that says nothing.
    """
    waiting: deque[tuple[Item, Future[Answer]]] = deque((item, Future()) for item in items)
    answers = [answer for _, answer in waiting]

    def work() -> None:
        while True:
            try:
                item, answer = waiting.popleft()
            except IndexError:
                return
            try:
                answer.set_result(ask(item))
            except Exception as error:  # noqa: BLE001 - it is raised where the answer is read
                answer.set_exception(error)

    for number in range(min(asked_at_once, len(answers))):
        threading.Thread(target=work, name=f"ask-{number}", daemon=True).start()
    return [answer.result() for answer in answers]
