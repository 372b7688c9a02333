"""The LoRA that a training goes on from: is it one that TrainLoraNode can take up, and how it is handed over. Pure.

TrainLoraNode of ComfyUI 0.30.0 takes up low-rank layers under ComfyUI's own names only ("diffusion_model.…"), silently
begins anew with any other, passes over DoRA's scales, takes each alpha for 1, and always begins norms and biases
(`.diff`, `.diff_b`) at zero. It trains the alphas of a LoRA, too, so even its own are seldom 1 (bfloat16 rounds small
changes away). So alphas are multiplied into the layers; norms and biases are laid onto the base while it trains, and
added to what it has learned afterwards; and what it still could not take up is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from comfyui.errors import WeightsError
from comfyui.training.base_model import BaseModel
from comfyui.training.tensors import FLOATS, Tensor

STEPS_KEY = "ss_steps"
ALPHA, SCALED = ".alpha", ".lora_up.weight"
"""A layer's alpha, and the tensor of a LoRA's layer that it can be multiplied into."""
_OFFSET = re.compile(r"\.(diff|diff_b)$")
_IGNORED = re.compile(r"\.(dora_scale|lora_mid\.weight)$")
_LAYER_SUFFIX = re.compile(
    r"\.(alpha|dora_scale|diff|diff_b|lora_(up|down|mid)\.weight|hada_[wt]\d(_[ab])?|lokr_(w1|w2|t2)(_[ab])?|oft_blocks|rescale)$"
)


MAX_BYTES = 8 * 1024**3
"""Of a LoRA that is read into memory: more than rank 128 of any model that can be trained here takes."""


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
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise _refused(path, f"{name} is of type {tensor.dtype}", f"tensors of {', '.join(FLOATS)}", tensor.dtype)
        if _IGNORED.search(name):
            raise _refused(path, f"ComfyUI's training would leave {name} out", "layers that it trains", name)
    plain = _without_alphas(tensors, path)
    steps = metadata.get(STEPS_KEY, "0")
    return ExistingLora(
        {name: tensor for name, tensor in plain.items() if not _OFFSET.search(name)},
        {name: tensor for name, tensor in plain.items() if _OFFSET.search(name)},
        int(steps) if re.fullmatch(r"\d{1,9}", steps) else 0,
    )


def check_size(size: int | None, path: str) -> None:
    """Raise WeightsError for a file that is too large for a LoRA, before it is fetched or read."""
    if size is not None and size > MAX_BYTES:
        raise _refused(path, f"it has {size} bytes, too many for a LoRA", f"{MAX_BYTES} bytes at most", f"{size} bytes")


def layers_name(steps: int) -> str:
    """The file name from which TrainLoraNode reads how many steps came before."""
    return f"continued_{steps}_steps_.safetensors"


def offsets_name(steps: int) -> str:
    """The file name of the norms and biases."""
    return f"offsets_{steps}.safetensors"


def with_offsets(trained: Mapping[str, Tensor], offsets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained LoRA with the norms and biases that were laid onto the base under it."""
    joined = dict(trained)
    for name, offset in offsets.items():
        if name in joined:
            joined[name] = joined[name].with_numbers(joined[name].numbers() + offset.numbers())
        else:
            joined[name] = offset
    return joined


def _without_alphas(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """The same LoRA with every alpha at 1."""
    plain = dict(tensors)
    for name, tensor in tensors.items():
        if not name.endswith(ALPHA):
            continue
        values = tensor.numbers()
        if values.size == 1 and values.item() == 1.0:
            continue
        scaled = name.removesuffix(ALPHA) + SCALED
        if values.size != 1 or scaled not in tensors:
            text = f"{name} is not 1, which ComfyUI's training would take it for"
            raise _refused(path, text, "alpha 1 in every layer", name)
        plain[name] = tensor.with_numbers(np.ones_like(values))
        plain[scaled] = tensors[scaled].with_numbers(tensors[scaled].numbers() * values.item())
    return plain


def _refused(path: str, why: str, expected: str, seen: str) -> WeightsError:
    return WeightsError(f"{path} cannot be trained further: {why}.", path=path, expected=expected, seen=seen)


def _layer(name: str) -> str:
    return _LAYER_SUFFIX.sub("", name)
