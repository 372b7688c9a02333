"""Follow one prompt: its events and ComfyUI's log lines go to an observer, and silence is noticed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from comfyui.engine.client import ComfyUIClient, EventStream, HistoryEntry, SocketClosedError
from comfyui.engine.events import Event, Executing, ExecutionStart
from comfyui.engine.server import EngineServer
from comfyui.errors import DeadlineError, EngineError
from comfyui.process import LineLog

HISTORY_POLL_S = 0.02
OBSERVE_EVERY_S = 0.2
"""How long a log line of ComfyUI may wait before the observer sees it while no event comes."""


@dataclass(frozen=True)
class LogLine:
    """A line that ComfyUI printed while the prompt was followed."""

    text: str


Observer = Callable[[Event | LogLine], None]


class Watch:
    """Shows the observer what happens, and notices when nothing does."""

    def __init__(self, observe: Observer, stall_s: float | None) -> None:
        self._observe = observe
        self._stall_s = stall_s
        self._since = self._seen = time.monotonic()
        self._begun = False

    def see(self, item: Event | LogLine) -> None:
        """Something happened."""
        self._seen = time.monotonic()
        self._begun = self._begun or isinstance(item, ExecutionStart)
        self._observe(item)

    def never_begun(self, within_s: float) -> bool:
        """Whether ComfyUI had so long, and did not begin with the prompt."""
        return not self._begun and time.monotonic() - self._since > within_s

    def pass_on(self, lines: SimpleQueue[str]) -> None:
        """Show the log lines that have come by now; a node may print faster than anybody reads."""
        for _ in range(lines.qsize()):
            with suppress(Empty):
                self.see(LogLine(lines.get_nowait()))

    def check(self) -> None:
        """Raise DeadlineError if nothing has happened for too long."""
        if self._stall_s is not None and time.monotonic() - self._seen > self._stall_s:
            hint = "It was stopped. If a node of it is that slow, give stall_timeout a larger number, or 0 for none."
            raise DeadlineError("Waiting for any sign of life of ComfyUI", self._stall_s, hint=hint)


async def follow(
    prompt: Mapping[str, Any], prompt_id: str, server: EngineServer, client: ComfyUIClient, log: LineLog, watch: Watch
) -> HistoryEntry:
    """Submit a prompt to `server`, whose `client` it is, and listen until it is done; returns its history.

    A websocket that drops is opened again. Raises PromptRefusedError, EngineDiedError, DeadlineError, and EngineError
    where the prompt could not be submitted. `server` is asked whether it lives, not whichever ComfyUI is there by then:
    another prediction may have started the next one already.
    """
    client_id = uuid.uuid4().hex
    sent = submitted = False
    with log.listen() as lines:
        while True:
            try:
                async with client.events(client_id) as stream:
                    if not submitted:
                        sent = True
                        await client.submit(prompt, prompt_id=prompt_id, client_id=client_id)
                        submitted = True
                    elif entry := await client.history(prompt_id):
                        return entry
                    await _until_done(stream, prompt_id, lines, watch, server.alive)
                    return await _history_of(client, prompt_id)
            except (SocketClosedError, EngineError):
                if await server.seen_dead():
                    # What it left behind may hold its output open, memory of the GPU, and files of this turn.
                    await server.stop()
                    raise server.died("while it ran the workflow", had_prompt=sent) from None
                if not submitted:
                    raise
                watch.check()
            finally:
                watch.pass_on(lines)


async def _until_done(
    stream: EventStream, prompt_id: str, lines: SimpleQueue[str], watch: Watch, alive: Callable[[], bool]
) -> None:
    """Hand on events and log lines until ComfyUI says that it is done with this prompt."""
    while True:
        pending = asyncio.ensure_future(stream.next())
        try:
            while not pending.done():
                await asyncio.wait({pending}, timeout=OBSERVE_EVERY_S)
                watch.pass_on(lines)
                # An event that is there but not read yet is a sign of life: it was us who did not look.
                if pending.done():
                    break
                # Its children have copies of the connection: that one of them lives may keep it open.
                if not alive():
                    raise SocketClosedError
                watch.check()
        finally:
            pending.cancel()
        event = pending.result()
        if event.prompt_id not in (None, prompt_id):
            continue
        watch.see(event)
        # History is written between execution_success and this message, so only this one means that it is complete.
        if isinstance(event, Executing) and event.node_id is None and event.prompt_id == prompt_id:
            return


async def _history_of(client: ComfyUIClient, prompt_id: str) -> HistoryEntry:
    """The entry of a prompt that is done; asked again should ComfyUI be slower to write it than to say so."""
    while True:
        if entry := await client.history(prompt_id):
            return entry
        await asyncio.sleep(HISTORY_POLL_S)
