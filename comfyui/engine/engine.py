"""The supervised ComfyUI: started once, followed while it works, started again when it has died.

What flows through: a prompt (API format) in, its history entry out, its events and log lines to an observer on the
way. Not for: reading workflows, or turning what a node reports into files.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import aiohttp
import psutil

from comfyui.deadline import Deadline
from comfyui.engine.client import ComfyUIClient, EventStream, HistoryEntry, SocketClosedError
from comfyui.engine.events import Event, Executing
from comfyui.engine.server import EngineFolders, EngineServer
from comfyui.errors import DeadlineError, EngineError
from comfyui.process import LineLog
from comfyui.settings import Settings

HISTORY_POLL_S = 0.02
OBSERVE_EVERY_S = 0.2
"""How long a log line of ComfyUI may wait before the observer sees it while no event comes."""
LET_GO_S = 8.0
"""How long ComfyUI may take to stop a cancelled prompt before it is ended itself."""
SEE_DEATH_S = 1.0
"""After its websocket closed, how long a process gets to be seen as ended before it is taken for alive."""


@dataclass(frozen=True)
class LogLine:
    """A line that ComfyUI printed while the prompt was followed."""

    text: str


Observer = Callable[[Event | LogLine], None]


class Engine:
    """One ComfyUI at a time, in a run folder of its own below settings.data_dir.

    `sink` gets every line ComfyUI prints, from a thread, for the container's log.
    """

    def __init__(self, settings: Settings, sink: Callable[[str], None]) -> None:
        self._settings = settings
        self._log = LineLog(sink)
        self._session: aiohttp.ClientSession | None = None
        self._server: EngineServer | None = None
        self._run_dir: Path | None = None
        self._starting = asyncio.Lock()
        self._object_info: tuple[int | None, Mapping[str, Any]] | None = None

    @property
    def folders(self) -> EngineFolders:
        """Where the running ComfyUI reads and writes."""
        return self._require_server().folders

    @property
    def pid(self) -> int | None:
        """Process id of ComfyUI, None before it was started."""
        return self._server.pid if self._server else None

    def alive(self) -> bool:
        """True while the ComfyUI process runs."""
        return self._server is not None and self._server.alive()

    def spawn(self) -> None:
        """Start the process without waiting for it; `ready` waits. Raises EngineError if there is no ComfyUI."""
        if self._run_dir is None:
            self._run_dir = new_run_dir(self._settings.data_dir / "runs")
        self._server = EngineServer(self._settings, self._run_dir, self._log)
        self._server.spawn()

    async def ready(self) -> None:
        """Wait until ComfyUI answers; start it first if it is not running.

        Raises EngineDiedError with its last lines if it ends while it starts, DeadlineError if it takes too long.
        """
        async with self._starting:
            if not self.alive():
                if self._server is not None:
                    self._log.add(f"ComfyUI is started again: {self._server.died('before this prediction')}")
                    await self._server.stop()
                self.spawn()
            limit_s = self._settings.engine_start_timeout_s
            hint = "Its log above says how far it got; ENGINE_START_TIMEOUT_S gives it longer."
            deadline = Deadline(limit_s, "Starting ComfyUI", hint=hint)
            await self._require_server().wait_ready(self._http(), deadline)

    async def client(self) -> ComfyUIClient:
        """A client of a ComfyUI that answers, started again if need be. Raises as `ready` does."""
        if self.alive():
            client = ComfyUIClient(self._require_server().base_url, self._http())
            if await client.answers():
                return client
            # A process that was just killed still counts as running for a moment.
            await self._seen_dead()
        await self.ready()
        return ComfyUIClient(self._require_server().base_url, self._http())

    async def object_info(self, *, fresh: bool) -> Mapping[str, Any]:
        """ComfyUI's node classes. Asked once for each ComfyUI that is started; `fresh` asks again, since the lists of
        files in it change. Raises as `client` does."""
        client = await self.client()
        if fresh or self._object_info is None or self._object_info[0] != self.pid:
            self._object_info = (self.pid, await client.object_info())
        return self._object_info[1]

    async def run(
        self, prompt: Mapping[str, Any], *, deadline: Deadline, observe: Observer, stall_s: float | None = None
    ) -> HistoryEntry:
        """Run a prompt to its end and return what ComfyUI remembers of it, a node's failure included.

        `observe` is called in this coroutine with each event and log line; `stall_s` is how many seconds may pass
        without either. Raises PromptRefusedError,
        EngineDiedError, DeadlineError; whatever ends the wait (a cancel too), the prompt does not go on in ComfyUI.
        """
        client = await self.client()
        prompt_id, client_id = str(uuid.uuid4()), uuid.uuid4().hex
        done = False
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                entry = await self._follow(client, prompt, prompt_id, client_id, _Watch(observe, stall_s))
            done = True
            return entry
        except TimeoutError as error:
            raise deadline.error() from error
        finally:
            if self.alive():
                await self._forget(client, prompt_id, cancel=not done)

    async def stop(self) -> None:
        """End ComfyUI and remove its run folder; harmless when it was never started."""
        if self._server is not None:
            await self._server.stop()
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._run_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)
            self._run_dir = None

    async def _follow(
        self, client: ComfyUIClient, prompt: Mapping[str, Any], prompt_id: str, client_id: str, watch: _Watch
    ) -> HistoryEntry:
        """Submit, then listen until the prompt is done; a websocket that drops is opened again."""
        submitted = False
        with self._log.listen() as lines:
            while True:
                try:
                    async with client.events(client_id) as stream:
                        if not submitted:
                            await client.submit(prompt, prompt_id=prompt_id, client_id=client_id)
                            submitted = True
                        elif entry := await client.history(prompt_id):
                            return entry
                        await _until_done(stream, prompt_id, lines, watch)
                        return await _history(client, prompt_id)
                except (SocketClosedError, EngineError):
                    await self._raise_if_dead("while it ran the workflow")
                    if not submitted:
                        raise
                finally:
                    watch.pass_on(lines)

    async def _raise_if_dead(self, when: str) -> None:
        if await self._seen_dead():
            raise self._require_server().died(when)

    async def _seen_dead(self) -> bool:
        """Whether the process ends within SEE_DEATH_S."""
        for _ in range(int(SEE_DEATH_S / HISTORY_POLL_S)):
            if not self.alive():
                return True
            await asyncio.sleep(HISTORY_POLL_S)
        return False

    async def _forget(self, client: ComfyUIClient, prompt_id: str, *, cancel: bool) -> None:
        """Leave nothing of the prompt in ComfyUI; one that cannot let go of it is ended, and started again when needed.

        It must not hide the error that brought us here, nor be cut short by a second cancel.
        """

        async def clean() -> None:
            if cancel:
                await client.cancel(prompt_id)
            while True:
                # A node that does not ask whether it is interrupted goes on until it is done.
                if not (cancel and await client.is_pending(prompt_id)):
                    break
                await asyncio.sleep(HISTORY_POLL_S)
            await client.forget(prompt_id)

        async def clean_in_time() -> None:
            try:
                async with asyncio.timeout(LET_GO_S):
                    await clean()
            except (EngineError, TimeoutError) as error:
                if self.alive():
                    reason = str(error) or f"it did not let go of a prompt within {LET_GO_S:g} s"
                    self._log.add(f"ComfyUI is ended: {reason}")
                    await self._require_server().stop()

        await asyncio.shield(asyncio.ensure_future(clean_in_time()))

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    def _require_server(self) -> EngineServer:
        if self._server is None:
            raise EngineError("ComfyUI has not been started yet.")
        return self._server


def new_run_dir(runs: Path) -> Path:
    """A folder for this process's ComfyUI below `runs`, named by our process id; those of dead processes go now."""
    runs.mkdir(parents=True, exist_ok=True)
    for old in runs.glob("engine-*-*"):
        owner = old.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"engine-{os.getpid()}-", dir=runs))


class _Watch:
    """Shows the observer what happens, and notices when nothing does."""

    def __init__(self, observe: Observer, stall_s: float | None) -> None:
        self._observe = observe
        self._stall_s = stall_s
        self._seen = time.monotonic()

    def see(self, item: Event | LogLine) -> None:
        """Something happened."""
        self._seen = time.monotonic()
        self._observe(item)

    def pass_on(self, lines: SimpleQueue[str]) -> None:
        """Show the log lines that have come."""
        while True:
            try:
                self.see(LogLine(lines.get_nowait()))
            except Empty:
                return

    def check(self) -> None:
        """Raise DeadlineError if nothing has happened for too long."""
        if self._stall_s is not None and time.monotonic() - self._seen > self._stall_s:
            hint = "It was stopped. If a node of it is that slow, give stall_timeout a larger number, or 0 for none."
            raise DeadlineError("Waiting for any sign of life of ComfyUI", self._stall_s, hint=hint)


async def _until_done(stream: EventStream, prompt_id: str, lines: SimpleQueue[str], watch: _Watch) -> None:
    """Hand on events and log lines until ComfyUI says that it is done with this prompt."""
    while True:
        pending = asyncio.ensure_future(stream.next())
        try:
            while not pending.done():
                await asyncio.wait({pending}, timeout=OBSERVE_EVERY_S)
                watch.pass_on(lines)
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


async def _history(client: ComfyUIClient, prompt_id: str) -> HistoryEntry:
    """The entry of a prompt that is done; asked again should ComfyUI be slower to write it than to say so."""
    while True:
        if entry := await client.history(prompt_id):
            return entry
        await asyncio.sleep(HISTORY_POLL_S)
