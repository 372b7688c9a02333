"""What a prediction costs over bare ComfyUI: its overhead, ComfyUI's idle time between two, and the checks before it.

Overhead: the same prompt, in turn, posted to bare ComfyUI (followed on its websocket, its file read from disk, as the
leanest client would) and sent through Cog with all checks on; once with a fixed seed, when only the picture is saved
anew, and once with random ones, when it is sampled. Idle: two clients keep two predictions in flight, each with an
input picture from a server that takes a second to give it; ComfyUI's own status messages say when its queue is empty.
Checks: converting and checking the largest workflow at hand, a UI file where the test data are there.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import requests

from benchmarks.common import bare_comfyui, spread, verdict
from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer
from comfyui.local.demo.weights import make_demo_weights
from comfyui.settings import PROJECT_ROOT, Settings
from comfyui.workflow.check import check
from comfyui.workflow.convert import convert, is_ui_format
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import read_json, workflow_of

MEDIAN_MS, P95_MS, IDLE_MS, CHECKS_MS = 15.0, 40.0, 30.0, 50.0
WARM_UP = 3
INPUT_DELAY_S = 1.0
PICTURE = PROJECT_ROOT / "docs" / "images" / "quickstart.webp"
UI_PAIRS = PROJECT_ROOT.parent / "shared" / "data" / "ui_to_api"


def tiny_workflow(**values: Any) -> dict[str, Any]:
    """The example with tiny weights; each value replaces the input of that name in every node that has it."""
    prompt: dict[str, Any] = json.loads((PROJECT_ROOT / "examples" / "workflows" / "tiny_sd3.json").read_text("utf-8"))
    for node in prompt.values():
        node["inputs"].update({name: value for name, value in values.items() if name in node["inputs"]})
    return prompt


def with_prefix(prompt: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The prompt saving under another name: bare ComfyUI would answer an identical one without saving."""
    for node in prompt.values():
        if node["class_type"] == "SaveImage":
            node["inputs"]["filename_prefix"] = prefix
    return prompt


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


def our_prediction(session: requests.Session, url: str, prompt: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """The answer of Cog, with `milliseconds` from the POST until the picture is here."""
    body = {"input": {"workflow_json": json.dumps(prompt), "output_format": "png", **inputs}}
    start = time.monotonic()
    while (response := session.post(f"{url}/predictions", json=body, timeout=120)).status_code == 409:
        start = time.monotonic()
    answer: dict[str, Any] = response.json()
    if answer["status"] != "succeeded":
        raise RuntimeError(answer["error"])
    return {**answer, "milliseconds": (time.monotonic() - start) * 1000}


def overhead(bare_url: str, our_url: str, runs: int, *, random_seeds: bool) -> None:
    """Print the difference of the pairs, and how often ours loaded the checkpoint again."""
    differences, loads = [], 0
    with requests.Session() as session:
        for number in range(runs + WARM_UP):
            seed = random.randrange(2**32) if random_seeds else 5
            prompt = with_prefix(tiny_workflow(seed=seed, steps=1), f"run{number}")
            bare_ms = asyncio.run(bare_prompt(bare_url, prompt))
            answer = our_prediction(session, our_url, prompt, randomise_seeds=random_seeds)
            if number >= WARM_UP:
                differences.append(answer["milliseconds"] - bare_ms)
                loads += answer["metrics"]["load_seconds"] > 0
    name = "random seeds" if random_seeds else "a fixed seed"
    print(f"overhead with {name}: {spread(differences, 'ms')}")
    verdict(f"  median, {name}", statistics.median(differences), MEDIAN_MS, " ms")
    verdict(f"  95th percentile, {name}", statistics.quantiles(differences, n=20)[-1], P95_MS, " ms")
    print(f"  predictions that read a checkpoint again: {loads} of {runs}")


class _SlowPicture(BaseHTTPRequestHandler):
    """Gives one picture under every path, a second after it was asked for."""

    def do_GET(self) -> None:
        time.sleep(INPUT_DELAY_S)
        body = PICTURE.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "image/webp")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nobody needs a log of it."""


@contextmanager
def slow_pictures() -> Iterator[str]:
    """The base URL of a server that gives a picture a second after it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SlowPicture)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def idle_times(engine_port: int) -> Iterator[list[float]]:
    """Milliseconds that ComfyUI's queue was empty, each time it was, while the block runs."""
    times: list[float] = []

    async def listen() -> None:
        empty_since: float | None = None
        url = f"http://127.0.0.1:{engine_port}/ws?clientId=benchmark"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            async for message in socket:
                event = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {}
                if event.get("type") != "status":
                    continue
                now, waiting = time.monotonic(), event["data"]["status"]["exec_info"]["queue_remaining"]
                if waiting and empty_since is not None:
                    times.append((now - empty_since) * 1000)
                    empty_since = None
                elif not waiting and empty_since is None:
                    empty_since = now

    loop = asyncio.new_event_loop()
    task = loop.create_task(listen())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    thread.start()
    try:
        yield times
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def engine_port(server: CogServer) -> int:
    """The port of the ComfyUI below a Cog server, from its command line."""
    for child in psutil.Process(server.pid).children(recursive=True):
        words = child.cmdline()
        if any(word.endswith("main.py") for word in words):
            return int(words[words.index("--port") + 1])
    raise RuntimeError("no ComfyUI there")


def idle(server: CogServer, runs: int) -> None:
    """Print how long ComfyUI had nothing to do between predictions."""

    def predict(number: int) -> float:
        prompt = with_prefix(tiny_workflow(seed=number, steps=400, width=256, height=256), f"idle{number}")
        prompt |= {
            "100": {"class_type": "LoadImage", "inputs": {"image": f"{pictures}/{number}.webp"}},
            "101": {"class_type": "SaveImage", "inputs": {"images": ["100", 0], "filename_prefix": "input"}},
        }
        with requests.Session() as session:
            answer = our_prediction(session, server.base_url, prompt, randomise_seeds=False)
        return float(answer["metrics"]["execution_seconds"])

    with slow_pictures() as pictures, ThreadPoolExecutor(2) as pool:
        list(pool.map(predict, range(2)))
        with idle_times(engine_port(server)) as times:
            busy = list(pool.map(predict, range(2, runs + 2)))
        print(f"ComfyUI at work in each: {spread(busy, 's')}")
        print(f"ComfyUI idle between:    {spread(times[1:], 'ms')}")
        verdict("  median idle time, with an input of 1 s each", statistics.median(times[1:]), IDLE_MS, " ms")


def largest_workflow() -> Path:
    """The largest UI workflow of the test data, or the largest example."""
    folder = UI_PAIRS if UI_PAIRS.is_dir() else PROJECT_ROOT / "examples" / "workflows"
    files = [path for path in folder.rglob("*.json") if "object_info" not in path.name and path.name != "index.json"]
    return max(files, key=lambda path: (_is_ui(path), path.stat().st_size))


def _is_ui(path: Path) -> bool:
    return is_ui_format(json.loads(path.read_text("utf-8")))


def checks(object_info: dict[str, Any]) -> None:
    """Print what reading, converting and checking the largest workflow takes."""
    path = largest_workflow()
    if UI_PAIRS in path.parents:
        object_info = json.loads(gzip.decompress((UI_PAIRS / "object_info.json.gz").read_bytes()))
    text = path.read_text("utf-8")

    def once() -> float:
        start = time.perf_counter()
        value = read_json(text)
        value = convert(value, object_info) if is_ui_format(value) else value
        check(workflow_of(value), NodeClasses(object_info))
        return (time.perf_counter() - start) * 1000

    times = _repeat(once, 20)
    print(f"reading, converting and checking {path.name} ({len(text) // 1000} kB): {spread(times, 'ms')}")
    verdict("  median", statistics.median(times), CHECKS_MS, " ms")


def _repeat(measure: Callable[[], float], times: int) -> list[float]:
    return [measure() for _ in range(times)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all three parts and print what was asked of each."""
    parser = argparse.ArgumentParser(prog="scripts/bench predict", description=__doc__)
    parser.add_argument("--runs", type=int, default=60, help="pairs of each kind (default 60)")
    runs = parser.parse_args(arguments).runs
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(Settings.from_environ(), models_dir=Path(folder) / "models", data_dir=Path(folder) / "data")
        make_demo_weights(settings.models_dir, ["checkpoints/tiny-sd3-notext"])
        environ = {
            "MODELS_DIR": str(settings.models_dir),
            "DATA_DIR": str(settings.data_dir),
            "ALLOW_PRIVATE_URLS": "1",
            "COG_MAX_CONCURRENCY": "2",
        }
        with CogServer("predict", environ=environ, sink=lambda _line: None) as server:
            server.wait_ready(Deadline(120, "The predictor's setup"))
            with bare_comfyui(settings) as bare_url:
                overhead(bare_url, server.base_url, runs, random_seeds=False)
                overhead(bare_url, server.base_url, runs, random_seeds=True)
                checks(requests.get(f"{bare_url}/object_info", timeout=60).json())
            idle(server, max(10, runs // 4))


if __name__ == "__main__":
    main()
