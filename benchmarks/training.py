"""Seconds for each step of a LoRA training, through our train call and as the same graph posted to bare ComfyUI.

Both are timed from their first steps to their last one, so the dataset is prepared and the models are loaded: ours by
the lines of the training's log, as a person sees them, the rival by its websocket. In turn: A B A B …
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image, ImageDraw

from benchmarks.common import bare_comfyui, spread, verdict
from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer
from comfyui.local.demo.weights import make_demo_weights
from comfyui.local.file_server import serve_files
from comfyui.settings import Settings
from comfyui.training.dataset import Dataset, prepare_dataset
from comfyui.training.graph import training_graph
from comfyui.training.parameters import TrainingParameters

ASKED = 1.05
PICTURES = 6
STEP_LINE = re.compile(r"\| (\d+)/(\d+)( loss |$)")


def make_pictures(folder: Path, side: int) -> None:
    """Some discs on grey."""
    folder.mkdir()
    for number in range(PICTURES):
        image = Image.new("RGB", (side, side), (96, 96, 104))
        ImageDraw.Draw(image).ellipse((number, number, side // 2 + number, side // 2 + number), fill=(255, 128, 0))
        image.save(folder / f"{number}.png")


def zip_of(folder: Path) -> Path:
    """A zip of the pictures, as a training call takes them."""
    path = folder.with_suffix(".zip")
    subprocess.run([sys.executable, "-m", "zipfile", "-c", str(path), *map(str, sorted(folder.iterdir()))], check=True)
    return path


async def bare_step_s(url: str, prompt: dict[str, Any], dataset: Dataset) -> float:
    """Seconds for a step in bare ComfyUI, from its first to its last."""
    client_id = uuid.uuid4().hex
    times: list[float] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId={client_id}") as socket:
        for image in dataset.images:
            form = aiohttp.FormData({"overwrite": "true"})
            form.add_field("image", image.path.read_bytes(), filename=image.path.name)
            (await session.post(f"{url}/upload/image", data=form)).raise_for_status()
        answer = await session.post(f"{url}/prompt", json={"prompt": prompt, "client_id": client_id})
        answer.raise_for_status()
        async for message in socket:
            event = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {}
            if event.get("type") == "progress" and event["data"]["node"] == "train":
                times.append(time.monotonic())
            if event.get("type") == "execution_error":
                raise RuntimeError(event["data"]["exception_message"])
            if event.get("type") == "executing" and event["data"].get("node") is None:
                break
    return (times[-1] - times[0]) / (len(times) - 1)


def our_step_s(lines: list[tuple[float, str]]) -> float:
    """Seconds for a step in a training's log, from its first line about steps to the last step."""
    seen = [(at, int(found[1])) for at, line in lines if (found := STEP_LINE.search(line))]
    (first_at, first), (last_at, last) = seen[0], seen[-1]
    return (last_at - first_at) / (last - first)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pairs and print the ratio."""
    parser = argparse.ArgumentParser(prog="scripts/bench training", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="pairs to run (default 5)")
    parser.add_argument("--steps", type=int, default=100, help="steps of each training (default 100)")
    parser.add_argument("--resolution", type=int, default=128, help="side of the pictures (default 128)")
    parser.add_argument("--checkpoint", type=Path, help="train on this one (default: the tiny demo checkpoint)")
    options = parser.parse_args(arguments)
    # On a CPU with other work, threads that wait for each other make a step last up to twice as long, at random.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = replace(Settings.from_environ(), models_dir=folder / "models", data_dir=folder / "data")
        checkpoint = settings.models_dir / "checkpoints" / "base.safetensors"
        checkpoint.parent.mkdir(parents=True)
        (demo,) = make_demo_weights(folder / "demo", ["checkpoints/tiny-sd15"])
        checkpoint.symlink_to((options.checkpoint or demo).absolute())
        make_pictures(folder / "pictures", options.resolution)
        dataset = prepare_dataset(
            folder / "pictures", folder / "dataset", resolution=options.resolution, trigger_word="zorb"
        )
        lines: list[tuple[float, str]] = []
        environ = {
            "ALLOW_PRIVATE_URLS": "1",
            "DATA_DIR": str(settings.data_dir),
            "WEIGHTS_OUT": str(folder / "weights.tar"),
        }
        ours, bare = [], []
        with (
            bare_comfyui(settings) as url,
            serve_files({"base.safetensors": checkpoint}) as served,
            CogServer("train", environ=environ, sink=lambda line: lines.append((time.monotonic(), line))) as server,
        ):
            server.wait_ready(Deadline(120, "The train server's setup"))
            inputs = {
                "checkpoints": served["base.safetensors"],
                "training_images": str(zip_of(folder / "pictures")),
                "trigger_word": "zorb",
                "steps": options.steps,
                "resolution": options.resolution,
            }
            for seed in range(options.runs):
                # Another seed for each pair, or bare ComfyUI would answer from its cache.
                parameters = TrainingParameters(steps=options.steps, resolution=options.resolution, seed=seed)
                prompt = training_graph(dataset.images, parameters, checkpoint.name)
                bare.append(asyncio.run(bare_step_s(url, prompt, dataset)))
                lines.clear()
                answer = server.call({**inputs, "seed": seed})
                if answer["status"] != "succeeded":
                    raise RuntimeError(answer["error"])
                ours.append(our_step_s(lines))
    print(f"a step through our train call: {spread(ours, 's')}")
    print(f"a step in bare ComfyUI:        {spread(bare, 's')}")
    verdict("ratio of the medians", statistics.median(ours) / statistics.median(bare), ASKED)


if __name__ == "__main__":
    main()
