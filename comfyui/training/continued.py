"""The LoRA that a training goes on from: is it one that TrainLoraNode can take up, and how it is handed over. Pure.

TrainLoraNode of ComfyUI 0.30.0 takes up low-rank layers under ComfyUI's own names only ("diffusion_model.…"), silently
begins anew with any other, takes each alpha for 1, and always begins norms and biases (`.diff`, `.diff_b`) at zero. So
what it could not take up is refused here, and norms and biases are laid onto the base while it trains and added to what
it has learned afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from comfyui.errors import WeightsError
from comfyui.training.base_model import BaseModel
from comfyui.training.tensors import Tensor

STEPS_KEY = "ss_steps"
_OFFSET = re.compile(r"\.(diff|diff_b)$")
_LAYER_SUFFIX = re.compile(
    r"\.(alpha|dora_scale|diff|diff_b|lora_(up|down|mid)\.weight|hada_[wt]\d(_[ab])?|lokr_(w1|w2|t2)(_[ab])?|oft_blocks|rescale)$"
)


@dataclass(frozen=True)
class ExistingLora:
    """A LoRA to go on from: its layers, its norms and biases, and the steps it was trained for (0 if nobody says)."""

    layers: Mapping[str, Tensor]
    offsets: Mapping[str, Tensor]
    steps: int


def existing_lora(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: BaseModel, path: str
) -> ExistingLora:
    """Sort the tensors of the LoRA at `path`. Raises WeightsError where it cannot be taken up on this base."""
    unknown = [name for name in tensors if _layer(name) not in base.modules]
    if unknown:
        raise WeightsError(
            f"{path} cannot be trained further on this checkpoint: {unknown[0]!r} is no layer of the checkpoint under "
            "ComfyUI's own names. Only a LoRA that ComfyUI trained itself, on a checkpoint of the same kind, can be "
            f"continued{f'; so it is with {len(unknown) - 1} more' if unknown[1:] else ''}.",
            path=path,
            expected="layers of the checkpoint",
            seen=unknown[0],
        )
    scaled = [name for name, tensor in tensors.items() if name.endswith(".alpha") and float(tensor.numbers()) != 1.0]
    if scaled:
        raise WeightsError(
            f"{path} cannot be trained further: {scaled[0]} is not 1, which ComfyUI's training would take it for.",
            path=path,
            expected="alpha 1 in every layer",
            seen=scaled[0],
        )
    steps = metadata.get(STEPS_KEY, "0")
    return ExistingLora(
        {name: tensor for name, tensor in tensors.items() if not _OFFSET.search(name)},
        {name: tensor for name, tensor in tensors.items() if _OFFSET.search(name)},
        int(steps) if re.fullmatch(r"\d{1,9}", steps) else 0,
    )


def layers_name(steps: int) -> str:
    """The file name from which TrainLoraNode reads how many steps came before."""
    return f"continued_{steps}_steps_.safetensors"


def with_offsets(trained: Mapping[str, Tensor], offsets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained LoRA with the norms and biases that were laid onto the base under it."""
    joined = dict(trained)
    for name, offset in offsets.items():
        if name in joined:
            joined[name] = joined[name].with_numbers(joined[name].numbers() + offset.numbers())
        else:
            joined[name] = offset
    return joined


def _layer(name: str) -> str:
    return _LAYER_SUFFIX.sub("", name)
