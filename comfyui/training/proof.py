"""The proof of a LoRA: every key of it finds its layer, and at strength 1 it changes a picture of a fixed seed.

ComfyUI loads a LoRA of another model without an error; all it says of it is a line in its log (comfy/lora.py and
comfy/sd.py of 0.30.0). The two pictures are kept as samples.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from comfyui.engine.client import HistoryEntry
from comfyui.engine.engine import Engine
from comfyui.engine.events import Event
from comfyui.engine.follow import LogLine
from comfyui.errors import TrainingInputError
from comfyui.training.follow import Patience, run_graph
from comfyui.training.graph import Prompt
from comfyui.training.parameters import TrainingParameters
from comfyui.training.progress import Report

STEPS = 20
CFG = 7.0
_NOT_LOADED = re.compile(r"(lora key not loaded: |NOT LOADED )(.+)")
_VISIBLE = 2
"""A pixel that changed by fewer levels of 255 may have been rounded otherwise."""


@dataclass(frozen=True)
class Samples:
    """PNGs of the same seed and prompt, without and with the LoRA, and by how much they differ: the mean over all
    pixels and colours, in levels of 255.
    """

    without: bytes
    with_lora: bytes
    difference: float


def sample_graph(
    checkpoint: str, lora: str, prompt: str, parameters: TrainingParameters, *, without: bool = True
) -> Prompt:
    """Two pictures of one seed, one past LoraLoader at strength 1, or that one alone; `checkpoint` and `lora` are names
    in ComfyUI.
    """
    graph: Prompt = {
        "base": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "lora": _node(
            "LoraLoader", model=["base", 0], clip=["base", 1], lora_name=lora, strength_model=1.0, strength_clip=1.0
        ),
        "empty": _node("EmptyLatentImage", width=parameters.resolution, height=parameters.resolution, batch_size=1),
    }
    for name, source in (("without", "base"), ("with", "lora"))[0 if without else 1 :]:
        graph[f"{name}_positive"] = _node("CLIPTextEncode", text=prompt, clip=[source, 1])
        graph[f"{name}_negative"] = _node("CLIPTextEncode", text="", clip=[source, 1])
        graph[f"{name}_sampled"] = _node(
            "KSampler",
            model=[source, 0],
            seed=parameters.seed,
            steps=STEPS,
            cfg=CFG,
            sampler_name="euler",
            scheduler="normal",
            positive=[f"{name}_positive", 0],
            negative=[f"{name}_negative", 0],
            latent_image=["empty", 0],
            denoise=1.0,
        )
        graph[f"{name}_decoded"] = _node("VAEDecode", samples=[f"{name}_sampled", 0], vae=["base", 2])
        graph[name] = _node("SaveImage", images=[f"{name}_decoded", 0], filename_prefix=f"samples/{name}_lora")
    return graph


async def prove(
    engine: Engine,
    checkpoint: str,
    lora: str,
    prompt: str,
    parameters: TrainingParameters,
    patience: Patience,
    report: Report,
) -> Samples:
    """Run the LoRA once. Raises TrainingInputError when a key of it finds no layer, or it changes nothing, and as
    `run_graph` does when that cannot be found out.
    """
    lost: list[str] = []

    def observe(item: Event | LogLine) -> None:
        if isinstance(item, LogLine) and (found := _NOT_LOADED.search(item.text)):
            lost.append(found[2])

    report.say("Proving the LoRA: the same picture without it and with it")
    entry = await run_graph(engine, sample_graph(checkpoint, lora, prompt, parameters), patience, observe)
    if lost:
        raise TrainingInputError(
            f"The trained LoRA does not fit its own checkpoint: {len(lost)} of its keys find no layer, {lost[0]} first."
            " This ComfyUI trains LoRAs for this kind of checkpoint that it cannot load; use another kind.",
            input_name="checkpoints",
        )
    samples = await asyncio.to_thread(_compare, _file(entry, "without", engine), _file(entry, "with", engine))
    report.say(f"All keys of the LoRA apply; the picture changes by {samples.difference:.2f} levels of 255 on average")
    return samples


async def sample(
    engine: Engine, checkpoint: str, lora: str, prompt: str, parameters: TrainingParameters, patience: Patience
) -> bytes:
    """A PNG of what the LoRA has learnt so far, with the seed, prompt and size of the proof."""
    graph = sample_graph(checkpoint, lora, prompt, parameters, without=False)
    entry = await run_graph(engine, graph, patience, lambda _item: None)
    return await asyncio.to_thread(_file(entry, "with", engine).read_bytes)


def _compare(without: Path, with_lora: Path) -> Samples:
    change = np.abs(_pixels(without) - _pixels(with_lora))
    if int(change.max()) < _VISIBLE:
        raise TrainingInputError(
            "The trained LoRA changes nothing: the picture with it at strength 1 is the one without it. Train it for "
            "more steps, or with a larger learning_rate.",
            input_name="steps",
        )
    return Samples(without.read_bytes(), with_lora.read_bytes(), float(change.mean()))


def _pixels(path: Path) -> npt.NDArray[np.int16]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def _file(entry: HistoryEntry, node_id: str, engine: Engine) -> Path:
    image = entry.outputs[node_id]["images"][0]
    return engine.folders.output / str(image["subfolder"]) / str(image["filename"])


def _node(class_type: str, **inputs: object) -> dict[str, object]:
    return {"class_type": class_type, "inputs": inputs}
