"""How much of a GPU's memory a run takes, by looking once a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from comfyui.engine.client import ComfyUIClient
from comfyui.errors import EngineError

LOOK_EVERY_S = 1.0


class PeakVram:
    """The most that was seen in use, in bytes; None where there is no GPU."""

    def __init__(self) -> None:
        self.bytes: int | None = None

    @asynccontextmanager
    async def watch(self, client: ComfyUIClient) -> AsyncIterator[None]:
        """Look while the block runs. A short peak between two looks is missed."""
        looking = asyncio.create_task(self._look(client))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self, client: ComfyUIClient) -> None:
        while True:
            # Whether ComfyUI answers is for those to judge who follow the prompt; it may be busy, and answer later.
            with suppress(EngineError):
                used = vram_in_use(await client.system_stats())
                if used is None:
                    return
                self.bytes = max(used, self.bytes or 0)
            await asyncio.sleep(LOOK_EVERY_S)


def vram_in_use(stats: Mapping[str, Any]) -> int | None:
    """Bytes in use on the fullest GPU, None where there is none. Pure.

    Format: GET /system_stats of ComfyUI 0.30.0 (server.py); what torch keeps for reuse counts as free there.
    """
    devices = stats.get("devices") or ()
    used = [
        device["vram_total"] - device["vram_free"] for device in devices if device.get("type") not in ("cpu", "mps")
    ]
    return max(used, default=None)
