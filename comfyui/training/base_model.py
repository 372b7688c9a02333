"""Can a LoRA be trained on this checkpoint? Answered from its name and its header, before gigabytes of it are fetched.

The names of tensors are those of whole checkpoints as ComfyUI's CheckpointLoaderSimple takes them (comfy/sd.py,
comfy/supported_models.py and comfy/model_detection.py of 0.30.0). Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from comfyui.errors import WeightsError
from comfyui.training.parameters import TrainingParameters
from comfyui.training.tensors import Header
from comfyui.weights.judge.formats import GGUF_EXTENSIONS, SAFETENSORS_EXTENSIONS

DIFFUSION = "model.diffusion_model."
_CODERS = ("first_stage_model.", "vae.")
_TEXT_ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
_TRAINABLE = frozenset({"F64", "F32", "F16", "BF16"})
_LORA_KEY = re.compile(r"\.(lora_(up|down|A|B)|hada_w\d|lokr_w\d|oft_blocks|diff(_b)?)(\.|_|$)")
_CONTEXT = re.compile(r"\.attn2\.to_k\.weight$")
_KINDS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint to train on. `kind` is Kohya's name of its architecture (ss_base_model_version) where it has one:
    sd_v1, sd_v2, sdxl_base_v1-0; else "sd3", "flux" or "unknown".
    """

    kind: str
    modules: frozenset[str]
    """Every layer of the diffusion model, as ComfyUI calls it: "diffusion_model.input_blocks.0.0"."""
    rank_numbers: int = 0
    """How many numbers each rank of a LoRA has: height and width of every layer's matrix."""
    flat_numbers: int = 0
    """How many numbers its norms and biases have."""

    def lora_bytes(self, parameters: TrainingParameters) -> int:
        """About how many bytes a LoRA of it takes; other algorithms than LoRA and LoHa take fewer."""
        pairs = 2 if parameters.algorithm == "LoHa" else 1
        width = 4 if parameters.lora_dtype == "fp32" else 2
        return width * (pairs * parameters.rank * self.rank_numbers + self.flat_numbers)


def check_name(path: str) -> None:
    """Raise WeightsError for a file that cannot be trained on whatever is in it: GGUF, or a pickle."""
    extension = PurePosixPath(path).suffix.lower()
    if extension in GGUF_EXTENSIONS:
        raise _refused(path, "it is GGUF, whose quantized weights cannot be trained", "a GGUF file")
    if extension not in SAFETENSORS_EXTENSIONS:
        raise _refused(path, f"{extension or 'a file without an extension'} is not safetensors", extension)


def judge(header: Header, path: str) -> BaseModel:
    """What the checkpoint is. Raises WeightsError that says why no LoRA can be trained on it."""
    check_name(path)
    names = header.tensors
    diffusion = {name: entry for name, entry in names.items() if name.startswith(DIFFUSION)}
    if not diffusion:
        raise _refused(path, *_what_else(names))
    for part, prefixes in (("VAE", _CODERS), ("text encoder", _TEXT_ENCODERS)):
        if not _any_with(names, prefixes):
            text = f"it has no {part}; give the whole checkpoint: diffusion model, VAE and text encoder in one file"
            raise _refused(path, text, f"no {part}")
    wrong = sorted({entry.dtype for entry in diffusion.values() if len(entry.shape) > 1} - _TRAINABLE)
    if wrong or any(".scale_weight" in name or name.endswith(".comfy_quant") for name in diffusion):
        how = ", ".join(wrong) or "scaled fp8"
        raise _refused(path, f"its weights are quantized ({how}); give its fp16, bf16 or fp32 version", how)
    modules = frozenset(name.removeprefix("model.").rpartition(".")[0] for name in diffusion)
    shapes = [entry.shape for entry in diffusion.values()]
    return BaseModel(
        _kind(header),
        modules,
        sum(shape[0] + math.prod(shape[1:]) for shape in shapes if len(shape) > 1),
        sum(math.prod(shape) for shape in shapes if len(shape) < 2),
    )


def _kind(header: Header) -> str:
    for name, entry in header.tensors.items():
        if name.startswith(DIFFUSION) and _CONTEXT.search(name) and len(entry.shape) == 2:
            return _KINDS.get(entry.shape[1], "unknown")
    if any(name.startswith(f"{DIFFUSION}joint_blocks.") for name in header.tensors):
        return "sd3"
    return "flux" if any(name.startswith(f"{DIFFUSION}double_blocks.") for name in header.tensors) else "unknown"


def _what_else(names: Iterable[str]) -> tuple[str, str]:
    """What a file without a diffusion model of a checkpoint is, in words, long and short."""
    names = list(names)
    if any(_LORA_KEY.search(name) for name in names):
        return "it is a LoRA itself; put its link into loras or existing_lora, and the checkpoint's here", "a LoRA"
    if any(re.search(r"(^|\.)(input_blocks|joint_blocks|double_blocks|down_blocks)\.", name) for name in names):
        text = "it is a diffusion model alone; give the whole checkpoint, with VAE and text encoder in one file"
        return text, "a bare diffusion model"
    return f"it has no tensors under {DIFFUSION}*, so it is no whole checkpoint", "no diffusion model"


def _any_with(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _refused(path: str, why: str, seen: str) -> WeightsError:
    return WeightsError(
        f"No LoRA can be trained on {path}: {why}.",
        path=path,
        expected="a fp16, bf16 or fp32 checkpoint",
        seen=seen,
    )
