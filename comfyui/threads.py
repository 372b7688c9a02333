"""Slow work of the ordinary, blocking kind inside a coroutine, so that a cancel ends it and its lines are not lost."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from comfyui.errors import StoppedError

Result = TypeVar("Result")
STOP_POLL_S = 0.1


async def in_thread(work: Callable[[threading.Event], Result]) -> Result:
    """Run `work` in a thread and return its result. Raises what it raises.

    A cancel sets the event that it was given, and waits until it has cleaned up after itself.
    """
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        # Whatever it fails with on the way out (Cog deletes a cancelled prediction's files) is not the news.
        with suppress(Exception):
            await running
        raise


def run_until(stop: threading.Event, work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end in this thread, which has no event loop yet; the other way round of `in_thread`.

    Raises what it raises, and StoppedError once `stop` is set and the coroutine has taken its cancel.
    """

    async def watched() -> Result:
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait({task}, timeout=STOP_POLL_S)
            if stop.is_set() and task.cancel():
                # What fails on the way out is not the news.
                await asyncio.gather(task, return_exceptions=True)
                raise StoppedError("It was stopped before it was done.")
        return task.result()

    return asyncio.run(watched())


def in_this_context(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, for use from any thread, with what it prints counted as printed here.

    Cog takes for an async training's log only what is printed in that training's own context (contextvars), and threads
    begin with an empty one.
    """
    context = contextvars.copy_context()
    # A copy for each line: a context can be entered by one thread at a time.
    return lambda line: context.copy().run(say, line)
