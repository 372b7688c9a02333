"""The workflow behind scripts/generate: a checkpoint, a stack of LoRAs, a prompt, one sampler. Pure.

checkpoint ──► LoRA ──► LoRA ──► … ──► prompt, negative prompt ──► sampler ──► decode ──► save
                                    empty picture, or one to begin from ──┘
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from comfyui.workflow.parse import Node, Workflow

SIZE_STEP = 8
"""A latent's pixel is 8 of the picture's in each direction (EmptyLatentImage, VAEEncode)."""
MIN_SIDE = 16


@dataclass(frozen=True)
class Lora:
    """A LoRA by the name that its loader takes (a file in loras/, or a link), and its strength."""

    name: str
    strength: float


@dataclass(frozen=True)
class Beginning:
    """A picture to begin from: its name in ComfyUI's input folder, and how much of it goes (denoise, 0 to 1)."""

    image: str
    denoise: float


@dataclass(frozen=True)
class Picture:
    """What is to be made; `width` and `height` are pixels, multiples of SIZE_STEP."""

    prompt: str
    negative: str
    checkpoint: str
    loras: tuple[Lora, ...]
    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int
    batch: int = 1
    beginning: Beginning | None = None


@dataclass
class _Graph:
    """Nodes by number, in the order in which they are added."""

    nodes: dict[str, Node] = field(default_factory=dict)

    def add(self, class_type: str, title: str, **inputs: Any) -> str:
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = Node(node_id, class_type, title, inputs)
        return node_id


def picture_workflow(picture: Picture) -> Workflow:
    """The workflow in API format that makes the picture."""
    graph = _Graph()
    checkpoint = graph.add("CheckpointLoaderSimple", "Checkpoint", ckpt_name=picture.checkpoint)
    model, clip, vae = [checkpoint, 0], [checkpoint, 1], [checkpoint, 2]
    for lora in picture.loras:
        node = graph.add(
            "LoraLoader",
            "LoRA",
            model=model,
            clip=clip,
            lora_name=lora.name,
            strength_model=lora.strength,
            strength_clip=lora.strength,
        )
        model, clip = [node, 0], [node, 1]
    positive = graph.add("CLIPTextEncode", "Prompt", clip=clip, text=picture.prompt)
    negative = graph.add("CLIPTextEncode", "Negative prompt", clip=clip, text=picture.negative)
    sampled = graph.add(
        "KSampler",
        "Sampler",
        model=model,
        positive=[positive, 0],
        negative=[negative, 0],
        latent_image=_latent(graph, picture, vae),
        seed=picture.seed,
        steps=picture.steps,
        cfg=picture.cfg,
        sampler_name=picture.sampler,
        scheduler=picture.scheduler,
        denoise=picture.beginning.denoise if picture.beginning else 1.0,
    )
    decoded = graph.add("VAEDecode", "Decode", samples=[sampled, 0], vae=vae)
    graph.add("SaveImage", "Save", images=[decoded, 0], filename_prefix="generate")
    return Workflow(graph.nodes)


def _latent(graph: _Graph, picture: Picture, vae: list[Any]) -> list[Any]:
    size = {"width": picture.width, "height": picture.height}
    if picture.beginning is None:
        return [graph.add("EmptyLatentImage", "Size", **size, batch_size=picture.batch), 0]
    loaded = graph.add("LoadImage", "Your picture", image=picture.beginning.image)
    scaled = graph.add("ImageScale", "Size", image=[loaded, 0], upscale_method="lanczos", crop="center", **size)
    encoded = graph.add("VAEEncode", "Encode", pixels=[scaled, 0], vae=vae)
    return [graph.add("RepeatLatentBatch", "Batch", samples=[encoded, 0], amount=picture.batch), 0]


def fitted_size(width: int, height: int, area: int) -> tuple[int, int]:
    """The width and height of about `area` pixels that keep a picture's shape, in steps of SIZE_STEP."""
    scale = math.sqrt(area / (width * height))

    def side(length: int) -> int:
        return max(MIN_SIDE, SIZE_STEP * round(length * scale / SIZE_STEP))

    return side(width), side(height)
