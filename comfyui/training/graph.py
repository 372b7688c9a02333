"""The training as a ComfyUI workflow (API format) of core nodes, in an order that the dataset alone decides. Pure.

    LoadImage ─► VAEEncode ─┐ one of each for a picture            CheckpointLoaderSimple
    CLIPTextEncode ─────────┤ one for each different caption              │
                            ├─► CreateList ─► KSampler ─► (ResolutionBucket) ─► TrainLoraNode ─► SaveLoRA
                            └─► CreateList ─┘ seeds only                              └────────► PreviewAny (losses)

ComfyUI's own folder loader reads a folder in whatever order the disk gives, and MakeTrainingDataset encodes a repeated
picture again each time and can be neither followed nor stopped: so each picture has nodes of its own. Formats:
comfy_extras/nodes_train.py, nodes_dataset.py and nodes_toolkit.py of ComfyUI 0.30.0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comfyui.training.dataset import TrainingImage
from comfyui.training.parameters import TrainingParameters

Prompt = dict[str, Any]
Link = list[str | int]

TRAIN, SAVE, LOSSES = "train", "save", "losses"
"""Ids of the nodes that others look for: the training, its file, its list of losses."""
LORA_PREFIX = "trained/lora"
"""Where SaveLoRA writes, below ComfyUI's output folder."""
NO_LORA = "[None]"
LIST_INPUTS = 10
"""CreateList takes no more at once (io.Autogrow's default)."""


@dataclass(frozen=True)
class Continued:
    """The LoRA to go on from, as names in the loras folder.

    `layers` holds what TrainLoraNode can go on with; its name ends with `_<steps>_steps_.safetensors`, where the node
    reads how far it is. `offsets` holds the norms and biases, which the node always begins anew: they are laid onto the
    base instead. None where there are none.
    """

    layers: str
    offsets: str | None


def training_graph(
    images: Sequence[TrainingImage], parameters: TrainingParameters, checkpoint: str, continued: Continued | None = None
) -> Prompt:
    """The prompt that trains on `images`, in their order, and saves the LoRA. `checkpoint` is its name in ComfyUI.

    The images lie in ComfyUI's input folder, under the names they have.
    """
    prompt: Prompt = {"base": _node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
    times = repetitions(images, parameters.batch_size)
    latents, captions = _encoded(prompt, images, times)
    # Without it the LoRA's first values are random numbers that no seed decides: with denoise 0 this hands the latents
    # through as they are, but sets the seed, and it comes after everything else that the training waits for.
    prompt["seeded"] = _node(
        "KSampler",
        model=["base", 0],
        seed=parameters.seed,
        steps=1,
        cfg=1.0,
        sampler_name="euler",
        scheduler="normal",
        positive=captions,
        negative=captions,
        latent_image=latents,
        denoise=0.0,
    )
    latents = ["seeded", 0]
    sizes = {(image.width, image.height) for image in images}
    if len(sizes) > 1:
        prompt["buckets"] = _node("ResolutionBucket", latents=latents, conditioning=captions)
        latents, captions = ["buckets", 0], ["buckets", 1]
    model: Link = ["base", 0]
    if continued is not None and continued.offsets is not None:
        prompt["offsets"] = _node("LoraLoaderModelOnly", model=model, lora_name=continued.offsets, strength_model=1.0)
        model = ["offsets", 0]
    prompt[TRAIN] = _node(
        "TrainLoraNode",
        model=model,
        latents=latents,
        positive=captions,
        batch_size=parameters.batch_size,
        grad_accumulation_steps=parameters.grad_accumulation_steps,
        steps=parameters.steps,
        learning_rate=parameters.learning_rate,
        rank=parameters.rank,
        optimizer=parameters.optimizer,
        loss_function=parameters.loss_function,
        seed=parameters.seed,
        training_dtype=parameters.training_dtype,
        lora_dtype=parameters.lora_dtype,
        quantized_backward=False,
        algorithm=parameters.algorithm,
        gradient_checkpointing=parameters.gradient_checkpointing,
        checkpoint_depth=1,
        offloading=False,
        existing_lora=continued.layers if continued else NO_LORA,
        bucket_mode=len(sizes) > 1,
        bypass_mode=False,
    )
    # Its `steps` input stays free: connected, the name has no counter and an older file of that name is overwritten.
    prompt[SAVE] = _node("SaveLoRA", lora=[TRAIN, 0], prefix=LORA_PREFIX)
    prompt[LOSSES] = _node("PreviewAny", source=[TRAIN, 1])
    return prompt


def repetitions(images: Sequence[TrainingImage], batch_size: int) -> list[int]:
    """How often each picture stands in the list: as few times as keep the repeats' proportions and fill a batch.

    TrainLoraNode draws from the list at random and knows no epochs, so "10 times each" is the same as once each, but
    that a batch never holds more than there is of one size. Never more than the dataset itself says.
    """
    common = math.gcd(*(image.repeats for image in images))
    least = [image.repeats // common for image in images]
    sizes: Counter[tuple[int, int]] = Counter()
    for image, times in zip(images, least, strict=True):
        sizes[image.width, image.height] += times
    factor = min(common, -(-batch_size // min(sizes.values())))
    return [times * factor for times in least]


def _encoded(prompt: Prompt, images: Sequence[TrainingImage], times: Sequence[int]) -> tuple[Link, Link]:
    """Add the nodes that encode pictures and captions; returns the list of latents and the list of conditionings."""
    latents: list[Link] = []
    conditionings: list[Link] = []
    texts: dict[str, str] = {}
    for number, (image, count) in enumerate(zip(images, times, strict=True), start=1):
        if image.caption not in texts:
            texts[image.caption] = f"caption{len(texts) + 1}"
            prompt[texts[image.caption]] = _node("CLIPTextEncode", text=image.caption, clip=["base", 1])
        prompt[f"image{number}"] = _node("LoadImage", image=image.path.name)
        prompt[f"latent{number}"] = _node("VAEEncode", pixels=[f"image{number}", 0], vae=["base", 2])
        latents += [[f"latent{number}", 0]] * count
        conditionings += [[texts[image.caption], 0]] * count
    return _list_of(prompt, "latents", latents), _list_of(prompt, "captions", conditionings)


def _list_of(prompt: Prompt, name: str, links: Sequence[Link]) -> Link:
    """One list of everything, in order, through as many CreateList nodes as that takes."""
    level = 0
    while level == 0 or len(links) > 1:
        joined: list[Link] = []
        for start in range(0, len(links), LIST_INPUTS):
            node_id = f"{name}{level}_{start // LIST_INPUTS}"
            some = links[start : start + LIST_INPUTS]
            prompt[node_id] = _node("CreateList", **{f"inputs.input{i}": link for i, link in enumerate(some)})
            joined.append([node_id, 0])
        links, level = joined, level + 1
    return links[0]


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
