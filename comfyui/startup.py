"""Start ComfyUI and do other slow work at the same time; the first thing that fails stops both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from comfyui.engine.engine import Engine


async def start_beside(engine: Engine, work: Callable[[threading.Event], object] | None) -> None:
    """Return when ComfyUI answers and `work` is done. `work` runs in a thread and ends early once its event is set.

    Raises what failed first, as it is: EngineError and DeadlineError of the start, or whatever `work` raises. ComfyUI
    is stopped then.
    """
    stop = threading.Event()
    done = False
    engine.spawn()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(engine.ready())
            if work is not None:
                group.create_task(asyncio.to_thread(work, stop))
        done = True
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        if not done:
            stop.set()
            await engine.stop()
