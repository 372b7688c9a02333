"""The supervised ComfyUI: started once, followed while it works, started again when it has died.

What flows through: a prompt (API format) in, its history entry out, its events and log lines to an observer on the
way. Not for: reading workflows, or turning what a node reports into files.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from comfyui.deadline import Deadline
from comfyui.engine.client import ComfyUIClient, HistoryEntry
from comfyui.engine.follow import Observer, Watch, follow
from comfyui.engine.server import EngineFolders, EngineServer
from comfyui.engine.turn import OwnFolders, Turns, own_folders
from comfyui.errors import ComfyUIModelError, DeadlineError, EngineError
from comfyui.process import LineLog
from comfyui.scratch import new_run_dir, remove_run_dir
from comfyui.settings import Settings

Answer = TypeVar("Answer")
POLL_S = 0.02
LET_GO_S = 8.0
"""How long ComfyUI may take to stop a cancelled prompt before it is ended itself."""
ANSWER_S = 3.0
"""How long one look waits for an answer. Cog gives up a health check after 5 s, and then nothing would be started."""
HUNG_S = 15.0
"""How long a ComfyUI that has nothing to do may be silent before it is ended: to unload tens of GB takes it seconds."""
ASK_TRIES = 3
"""How often a question is put to ComfyUI that dies before it has answered: others' prompts may take it down."""


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
        self._turns = Turns()
        # How many prompts and questions of ours ComfyUI has before it, and how many began or ended so far: while there
        # are any, it may be too busy to answer.
        self._waiting = 0
        self._uses = 0
        self._revival: asyncio.Task[None] | None = None
        self._object_info: tuple[int | None, Mapping[str, Any]] | None = None

    @property
    def folders(self) -> EngineFolders:
        """Where the running ComfyUI reads and writes."""
        return self._require_server().folders

    @property
    def pid(self) -> int | None:
        """Process id of ComfyUI, None before it was started."""
        return self._server.pid if self._server else None

    @property
    def on_cpu(self) -> bool:
        """Whether ComfyUI was told to use no GPU."""
        return self._require_server().on_cpu

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
        """Wait until ComfyUI has answered for the first time; start it first if it is not running.

        Raises EngineDiedError with its last lines if it ends while it starts, DeadlineError if it takes too long; it is
        ended then.
        """
        async with self._starting:
            if not self.alive():
                if self._server is not None:
                    # First what it left behind: a child of it may hold its output open, and memory of the GPU.
                    await self._server.stop()
                    self._log.add(f"ComfyUI is started again: {self._server.died('before this prediction')}")
                self.spawn()
            server = self._require_server()
            if server.was_ready:
                return
            limit_s = self._settings.engine_start_timeout_s
            hint = "Its log above says how far it got; ENGINE_START_TIMEOUT_S gives it longer."
            try:
                await server.wait_ready(self._http(), Deadline(limit_s, "Starting ComfyUI", hint=hint))
            except DeadlineError:
                # Else the next prediction would wait for the same one.
                await self._end(server, f"it did not answer within the {limit_s:g} s it was given to start")
                raise

    async def client(self) -> ComfyUIClient:
        """A client of a ComfyUI that answers, started again if need be. Raises as `ready` does."""
        return self._client_of(await self._answering())

    async def ask(self, question: Callable[[ComfyUIClient], Awaitable[Answer]]) -> Answer:
        """What a ComfyUI that answers says; asked again if it dies just then, for nothing is lost with it.

        Raises as `client` does, and EngineError for an answer that makes no sense.
        """
        tries = 0
        while True:
            server = await self._answering()
            tries += 1
            try:
                with self._in_use():
                    return await question(self._client_of(server))
            except EngineError:
                if tries == ASK_TRIES or not await server.seen_dead():
                    raise

    async def healthy(self) -> bool:
        """Whether ComfyUI is fit for a prediction at this moment; if not, it is being started again.

        While ComfyUI works for a prediction, that one's deadlines watch over it; it may be too busy for anybody else.
        """
        server = self._server
        if server is not None and server.alive() and server.was_ready:
            answers = self._waiting or await self._client_of(server).answers(within_s=ANSWER_S)
            # A prediction may have begun meanwhile.
            if answers or self._waiting:
                return True
        if self._revival is None or self._revival.done():
            self._revival = asyncio.create_task(self._revive())
        return False

    async def object_info(self, *, fresh: bool) -> Mapping[str, Any]:
        """ComfyUI's node classes. Asked once for each ComfyUI that is started; `fresh` asks again, since the lists of
        files in it change. Raises as `client` does."""
        if fresh or not self.alive() or self._object_info is None or self._object_info[0] != self.pid:
            self._object_info = (self.pid, await self.ask(ComfyUIClient.object_info))
        return self._object_info[1]

    def own_folders(self) -> AbstractAsyncContextManager[OwnFolders]:
        """Folders for one prediction, to be filled before its turn; they are gone after the block."""
        return own_folders(self._require_run_dir() / "predictions")

    def turn(self, own: OwnFolders) -> AbstractAsyncContextManager[None]:
        """Wait until no other prediction has ComfyUI, then have its folders until the end of the block."""
        return self._turns.take(own, self.folders)

    def taken(self) -> bool:
        """Whether some prediction has its turn now."""
        return self._turns.taken()

    async def run(
        self, prompt: Mapping[str, Any], *, deadline: Deadline, observe: Observer, stall_s: float | None = None
    ) -> HistoryEntry:
        """Run a prompt to its end and return what ComfyUI remembers of it, a node's failure included.

        `observe` is called in this coroutine with each event and log line; `stall_s` is how many seconds may pass
        without either. Raises PromptRefusedError, EngineDiedError, DeadlineError; whatever ends the wait (a cancel
        too), the prompt does not go on in ComfyUI.
        """
        server = await self._answering()
        prompt_id = str(uuid.uuid4())
        watch = Watch(observe, stall_s)
        done = late = False
        with self._in_use():
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    entry = await follow(prompt, prompt_id, server, self._client_of(server), self._log, watch)
                done = True
                return entry
            except TimeoutError as error:
                late = True
                raise deadline.error() from error
            except DeadlineError:
                late = True
                raise
            finally:
                if server.alive():
                    if late and watch.never_begun(LET_GO_S):
                        # What works prompts off is stuck; to take this one back would mend nothing for the next.
                        await self._end(server, f"it did not begin with a prompt within {LET_GO_S:g} s")
                    else:
                        await self._forget(server, prompt_id, cancel=not done)

    async def end(self, reason: str) -> None:
        """End a ComfyUI that cannot be relied on any more; the next prediction starts it again."""
        await self._end(self._require_server(), reason)

    async def stop(self) -> None:
        """End ComfyUI and remove its run folder; harmless when it was never started."""
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.gather(self._revival, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._run_dir is not None:
            await asyncio.to_thread(remove_run_dir, self._run_dir)
            self._run_dir = None

    async def _answering(self) -> EngineServer:
        """The process of a ComfyUI that answers, started again if need be. Raises as `ready` does.

        One that works for another prediction may be too busy to answer, and is waited for.
        """
        uses, since = self._uses, time.monotonic()
        while (server := self._server) is not None and server.alive() and server.was_ready:
            if await self._client_of(server).answers(within_s=ANSWER_S):
                return server
            # A process that was just killed still counts as running for a moment; by then another may be in its place.
            if await server.seen_dead() or self._server is not server:
                continue
            if self._waiting or self._uses != uses:
                uses, since = self._uses, time.monotonic()
            elif time.monotonic() - since > HUNG_S:
                await self._end(server, f"it does not answer for {HUNG_S:g} s, though it has nothing to do")
        await self.ready()
        return self._require_server()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._waiting += 1
        self._uses += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._uses += 1

    async def _end(self, server: EngineServer, reason: str) -> None:
        self._log.add(f"ComfyUI is ended: {reason}")
        await server.stop()

    async def _forget(self, server: EngineServer, prompt_id: str, *, cancel: bool) -> None:
        """Leave nothing of the prompt in ComfyUI; one that cannot let go of it is ended, and started again when needed.

        It must not hide the error that brought us here, nor be cut short by a second cancel.
        """

        client = self._client_of(server)

        async def clean() -> None:
            if cancel:
                await client.cancel(prompt_id)
            while True:
                # A node that does not ask whether it is interrupted goes on until it is done.
                if not (cancel and await client.is_pending(prompt_id)):
                    break
                await asyncio.sleep(POLL_S)
            await client.forget(prompt_id)

        async def clean_in_time() -> None:
            try:
                async with asyncio.timeout(LET_GO_S):
                    await clean()
            except (EngineError, TimeoutError) as error:
                # What is done and only stays in its history does no harm.
                if cancel and server.alive():
                    await self._end(server, str(error) or f"it did not let go of a prompt within {LET_GO_S:g} s")

        cleaning = asyncio.ensure_future(clean_in_time())
        cancelled: asyncio.CancelledError | None = None
        while not cleaning.done():
            # The next prediction's turn begins when we return.
            try:
                await asyncio.wait({cleaning})
            except asyncio.CancelledError as error:
                cancelled = error
        cleaning.result()
        if cancelled is not None:
            raise cancelled

    async def _revive(self) -> None:
        try:
            await self.client()
        except ComfyUIModelError as error:
            self._log.add(f"ComfyUI could not be started again: {error}")

    def _client_of(self, server: EngineServer) -> ComfyUIClient:
        return ComfyUIClient(server.base_url, self._http())

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    def _require_server(self) -> EngineServer:
        if self._server is None:
            raise EngineError("ComfyUI has not been started yet.")
        return self._server

    def _require_run_dir(self) -> Path:
        if self._run_dir is None:
            raise EngineError("ComfyUI has not been started yet.")
        return self._run_dir
