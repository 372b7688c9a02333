"""Blocking work in a coroutine: a cancel ends it, and its lines are printed where they belong."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from comfyui.errors import EngineError, StoppedError
from comfyui.threads import in_this_context, in_thread


async def test_the_result_and_the_error_of_the_work_come_back() -> None:
    assert await in_thread(lambda stop: stop.is_set()) is False

    def fail(_stop: threading.Event) -> None:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        await in_thread(fail)


async def test_a_cancel_waits_until_the_work_has_cleaned_up() -> None:
    begun, cleaned = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        begun.set()
        stop.wait()
        cleaned.set()
        raise StoppedError("stopped")

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned.is_set()


def test_a_line_of_any_thread_is_printed_in_the_callers_context() -> None:
    place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="nowhere")
    seen: list[str] = []
    place.set("here")
    say = in_this_context(lambda line: seen.append(f"{line} {place.get()}"))
    threads = [threading.Thread(target=lambda: [say("line") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["line here"] * 400
