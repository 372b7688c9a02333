"""What a prediction through Cog adds to the same prompt posted to bare ComfyUI, when nothing needs computing.

The prompt is answered from ComfyUI's cache but for the saving of one small picture, in both. The rival is followed on
its websocket and its file read from disk, as the leanest client would.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import requests

from benchmarks.common import bare_comfyui, spread, verdict
from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer
from comfyui.local.demo_weights import make_demo_weights
from comfyui.settings import PROJECT_ROOT, Settings

ASKED_MS = 60.0


async def bare_prompt(url: str, prompt: dict[str, Any]) -> float:
    """Milliseconds from the POST until ComfyUI says that it is done and its history names the file."""
    client_id = uuid.uuid4().hex
    start = time.monotonic()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId={client_id}") as socket:
        body = {"prompt": prompt, "client_id": client_id}
        prompt_id = (await (await session.post(f"{url}/prompt", json=body)).json())["prompt_id"]
        async for message in socket:
            event = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {}
            if event.get("type") == "executing" and event["data"].get("node") is None:
                break
        history = await (await session.get(f"{url}/history/{prompt_id}")).json()
        if not history[prompt_id]["outputs"]:
            raise RuntimeError("the rival made no picture")
    return (time.monotonic() - start) * 1000


def our_prediction(session: requests.Session, url: str, prompt: dict[str, Any]) -> float:
    """Milliseconds from the POST to Cog until the picture is here."""
    start = time.monotonic()
    inputs = {"workflow_json": json.dumps(prompt), "output_format": "png", "randomise_seeds": False}
    while (response := session.post(f"{url}/predictions", json={"input": inputs}, timeout=60)).status_code == 409:
        start = time.monotonic()
    answer = response.json()
    if not answer["output"][0].startswith("data:image/png"):
        raise RuntimeError(answer)
    return (time.monotonic() - start) * 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pairs and print the median difference."""
    parser = argparse.ArgumentParser(prog="scripts/bench overhead", description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="pairs to run (default 40)")
    runs = parser.parse_args(arguments).runs
    prompt = json.loads((PROJECT_ROOT / "examples" / "workflows" / "tiny_sd3.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(Settings.from_environ(), models_dir=Path(folder) / "models", data_dir=Path(folder) / "data")
        make_demo_weights(settings.models_dir, ["checkpoints/tiny-sd3-notext"])
        environ = {"MODELS_DIR": str(settings.models_dir), "DATA_DIR": str(settings.data_dir)}
        with (
            bare_comfyui(settings) as url,
            CogServer("predict", environ=environ, sink=lambda _line: None) as server,
            requests.Session() as session,
        ):
            server.wait_ready(Deadline(120, "The predictor's setup"))
            ours, bare = [], []
            for number in range(runs + 3):
                # The rival would answer an identical prompt without saving; ours always gives the file.
                prompt["8"]["inputs"]["filename_prefix"] = f"run{number}"
                bare_ms = asyncio.run(bare_prompt(url, prompt))
                ours_ms = our_prediction(session, server.base_url, prompt)
                if number >= 3:
                    bare.append(bare_ms)
                    ours.append(ours_ms)
    print(f"prediction through Cog: {spread(ours, 'ms')}")
    print(f"bare ComfyUI:           {spread(bare, 'ms')}")
    differences = [our - their for our, their in zip(ours, bare, strict=True)]
    verdict("median overhead", statistics.median(differences), ASKED_MS, " ms")


if __name__ == "__main__":
    main()
