"""The HTTP side: one route that takes webhooks and answers at once, and workers that fetch files afterwards.

401 not proven    400 proven, but no prediction    408, 413 too slow, too large    503 our disk; Replicate tries again
200 kept, or kept before: a retry of what arrived, and a replay, change nothing
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
from aiohttp import web

from examples.webhook_receiver.events import EventError, Prediction, read_prediction
from examples.webhook_receiver.outputs import Limits, fetch_files, open_session
from examples.webhook_receiver.signature import Claims, SignatureError, claims_of, verify
from examples.webhook_receiver.store import Store

PATH = "/replicate"
MAX_BODY_BYTES = 16 * 1024**2
"""A prediction with its inputs (a workflow is one of them) and its whole log."""
BODY_TIMEOUT_S = 10.0
WORKERS = 2

log = logging.getLogger("webhook_receiver")


class Receiver:
    """Takes webhooks into `store`; `key` is what `signature.read_secret` gives."""

    def __init__(
        self,
        key: bytes,
        store: Store,
        *,
        allow_private_urls: bool = False,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._key = key
        self._store = store
        self._allow_private_urls = allow_private_urls
        self._limits = limits
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._storing = asyncio.Lock()
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()

    def app(self) -> web.Application:
        """The application, to be run by an `aiohttp.web.AppRunner`; once for each Receiver."""
        app = web.Application(client_max_size=self._max_body_bytes)
        app.router.add_post(PATH, self._receive)
        app.cleanup_ctx.append(self._work)
        return app

    async def all_fetched(self) -> None:
        """Wait until no file is left to be fetched."""
        await self._waiting.join()

    async def _receive(self, request: web.Request) -> web.Response:
        try:
            claims = claims_of(request.headers, time.time())
            body = await self._body(request)
            verify(claims, body, self._key)
        except SignatureError as error:
            log.warning("refused a webhook: %s", error)
            return web.Response(status=401, text=f"{error}\n")
        try:
            prediction = read_prediction(body)
        except EventError as error:
            log.warning("refused a webhook that is signed: %s", error)
            return web.Response(status=400, text=f"{error}\n")
        return await self._keep(claims, prediction, body)

    async def _body(self, request: web.Request) -> bytes:
        """The body, byte for byte. Raises an HTTP error for one that does not fit, or does not come."""
        if (request.content_length or 0) > self._max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(self._max_body_bytes, request.content_length or 0)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        except (web.RequestPayloadError, ConnectionError):
            raise web.HTTPBadRequest(text="the body was cut\n") from None

    async def _keep(self, claims: Claims, prediction: Prediction, body: bytes) -> web.Response:
        try:
            async with self._storing:
                new = await asyncio.to_thread(self._store.record, claims.id, prediction, body)
        except OSError as error:
            log.error("could not keep %s: %s", prediction.id, error)
            return web.Response(status=503, text="could not be kept; send it again\n")
        if not new:
            return web.Response(text="known\n")
        log.info("%s is %s", prediction.id, prediction.status)
        if self._store.wants_files(prediction):
            self._queue(prediction.id)
        return web.Response(text="kept\n")

    def _queue(self, prediction_id: str) -> None:
        # Two events may tell the same end.
        if prediction_id not in self._queued:
            self._queued.add(prediction_id)
            self._waiting.put_nowait(prediction_id)

    async def _work(self, app: web.Application) -> AsyncIterator[None]:
        """Runs the workers as long as the application runs; what they leave undone, the next start takes up."""
        for prediction in await asyncio.to_thread(self._store.left_over):
            self._queue(prediction.id)
        session = open_session(allow_private=self._allow_private_urls, timeout_s=self._limits.timeout_s)
        async with session:
            workers = [asyncio.create_task(self._fetch_all(session)) for _ in range(WORKERS)]
            yield
            for worker in workers:
                worker.cancel()
                with suppress(asyncio.CancelledError):
                    await worker

    async def _fetch_all(self, session: aiohttp.ClientSession) -> None:
        while True:
            prediction_id = await self._waiting.get()
            try:
                await self._fetch(session, prediction_id)
            except OSError as error:
                log.error("could not keep the files of %s: %s", prediction_id, error)
            except Exception:
                # A worker that died would leave all further files to nobody.
                log.exception("could not fetch the files of %s", prediction_id)
            finally:
                self._queued.discard(prediction_id)
                self._waiting.task_done()

    async def _fetch(self, session: aiohttp.ClientSession, prediction_id: str) -> None:
        prediction = self._store.read(prediction_id)
        if prediction is None or not self._store.wants_files(prediction):
            return
        folder = self._store.files_folder(prediction_id)
        files = await fetch_files(session, prediction.file_urls, folder, self._limits)
        self._store.finish(prediction_id, files)
        for problem in (str(entry["error"]) for entry in files if "error" in entry):
            log.warning("a file of %s is not here: %s", prediction_id, problem)
        log.info("%s has %d files in %s", prediction_id, sum("file" in entry for entry in files), folder)
