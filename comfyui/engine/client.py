"""Speak to ComfyUI: its HTTP routes and its websocket, with aiohttp (which ComfyUI itself needs).

Routes and answers are those of ComfyUI 0.30.0 (server.py). Not for: what an answer means to a user (comfyui.workflow).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from comfyui.engine.events import Event, ExecutionFailed, ExecutionInterrupted, parse_event, parse_message
from comfyui.errors import EngineError

HTTP_TIMEOUT_S = 30.0
MAX_MESSAGE_BYTES = 256 * 1024**2
"""A text output or a preview may be large; aiohttp's own limit of 4 MB would drop the connection."""


class PromptRefusedError(Exception):
    """ComfyUI will not run the prompt as it is. `answer` is its JSON: `error` and `node_errors`."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__("ComfyUI refused the prompt")
        self.answer = answer


class SocketClosedError(Exception):
    """The websocket ended while a prompt was followed; whether ComfyUI lives is for the caller to find out."""


@dataclass(frozen=True)
class HistoryEntry:
    """What ComfyUI remembers of a finished prompt.

    `outputs` is by node id, then by kind ("images", "audio", …); `succeeded` is False after an error or an interrupt,
    and `failure` is then what was said of it.
    """

    outputs: Mapping[str, Mapping[str, Any]]
    succeeded: bool
    failure: ExecutionFailed | ExecutionInterrupted | None


def parse_history_entry(entry: Mapping[str, Any]) -> HistoryEntry:
    """An entry of /history (execution.py, PromptQueue.task_done) as a HistoryEntry."""
    status = entry.get("status") or {}
    failure = None
    for kind, data in status.get("messages") or ():
        event = parse_message(str(kind), data)
        if isinstance(event, ExecutionFailed | ExecutionInterrupted):
            failure = event
    return HistoryEntry(entry.get("outputs") or {}, status.get("status_str") == "success", failure)


class EventStream:
    """The events of one client id, in order, for as long as the websocket lives."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def next(self) -> Event:
        """The next event. Raises SocketClosedError when ComfyUI is gone or closed the connection."""
        message = await self._socket.receive()
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return parse_event(message.data)
        raise SocketClosedError


class ComfyUIClient:
    """One ComfyUI server at `base_url`. Every method raises EngineError when it does not answer as it should."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self.base_url = base_url
        self._session = session

    async def answers(self, *, within_s: float = HTTP_TIMEOUT_S) -> bool:
        """Whether ComfyUI answers at all, within so many seconds."""
        try:
            await self._request("GET", "/prompt", timeout_s=within_s)
        except EngineError:
            return False
        return True

    async def system_stats(self) -> Mapping[str, Any]:
        """What ComfyUI says of its machine: `devices` with their type, `vram_total` and `vram_free` in bytes."""
        stats: Mapping[str, Any] = await self._json("GET", "/system_stats")
        return stats

    async def object_info(self) -> Mapping[str, Any]:
        """Every node class that is loaded: its inputs, outputs and the lists of files it may choose from."""
        info: Mapping[str, Any] = await self._json("GET", "/object_info")
        return info

    async def model_folders(self) -> list[Mapping[str, Any]]:
        """The kinds of models: `name`, `folders` (where such files are looked for) and `extensions` (none for any)."""
        folders: list[Mapping[str, Any]] = await self._json("GET", "/experiment/models")
        return folders

    async def submit(self, prompt: Mapping[str, Any], *, prompt_id: str, client_id: str) -> None:
        """Queue a prompt (API format). Raises PromptRefusedError when ComfyUI finds any fault in it.

        ComfyUI itself queues a prompt of which only one branch is at fault, and leaves that branch out in silence;
        here such a prompt is taken back and refused whole.
        """
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id}
        answer = await self._json("POST", "/prompt", body, refusals=(400,))
        if "error" in answer:
            raise PromptRefusedError(answer)
        if answer.get("node_errors"):
            await self.cancel(prompt_id)
            raise PromptRefusedError(answer)

    async def history(self, prompt_id: str) -> HistoryEntry | None:
        """What became of a prompt, or None if it is not finished (or not known)."""
        entry = (await self._json("GET", f"/history/{prompt_id}")).get(prompt_id)
        return parse_history_entry(entry) if isinstance(entry, dict) else None

    async def is_pending(self, prompt_id: str) -> bool:
        """Whether a prompt is running or queued."""
        queue = await self._json("GET", "/queue")
        return any(item[1] == prompt_id for key in ("queue_running", "queue_pending") for item in queue[key])

    async def cancel(self, prompt_id: str) -> bool:
        """Stop a prompt, running or queued; True if there was one to stop."""
        return bool((await self._json("POST", f"/api/jobs/{prompt_id}/cancel")).get("cancelled"))

    async def free(self) -> None:
        """Forget cached results and unload models. ComfyUI does it before its next prompt."""
        await self._request("POST", "/free", {"unload_models": True, "free_memory": True})

    async def forget(self, prompt_id: str) -> None:
        """Take a finished prompt out of ComfyUI's history."""
        await self._request("POST", "/history", {"delete": [prompt_id]})

    @asynccontextmanager
    async def events(self, client_id: str) -> AsyncIterator[EventStream]:
        """Listen as `client_id`; prompts submitted under that id report here. Submit after this has begun."""
        try:
            async with asyncio.timeout(HTTP_TIMEOUT_S):
                socket = await self._session.ws_connect(
                    f"{self.base_url}/ws?clientId={client_id}", max_msg_size=MAX_MESSAGE_BYTES
                )
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise EngineError(f"ComfyUI's websocket cannot be opened: {reason}.") from error
        try:
            yield EventStream(socket)
        finally:
            # To its end even if somebody cancels once more: half closed, it would stay until the garbage collection.
            await asyncio.shield(socket.close())

    async def _json(
        self, method: str, route: str, body: Mapping[str, Any] | None = None, refusals: tuple[int, ...] = ()
    ) -> Any:
        text = await self._request(method, route, body, refusals)
        try:
            return json.loads(text)
        except ValueError as error:
            raise EngineError(f"ComfyUI answered {method} {route} with something that is not JSON: {error}.") from error

    async def _request(
        self,
        method: str,
        route: str,
        body: Mapping[str, Any] | None = None,
        refusals: tuple[int, ...] = (),
        *,
        timeout_s: float = HTTP_TIMEOUT_S,
    ) -> str:
        """The body of the answer; every status but 200 and `refusals` is an EngineError."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, self.base_url + route, json=body, timeout=timeout) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise EngineError(f"ComfyUI does not answer {method} {route}: {reason}.") from error
        if response.status != 200 and response.status not in refusals:
            raise EngineError(f"ComfyUI answered {method} {route} with HTTP {response.status}: {text[:500]}")
        return text
