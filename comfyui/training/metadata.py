"""What a trained LoRA says of itself in its safetensors metadata. Pure: the same training gives the same text.

The `ss_*` keys are those that Kohya's sd-scripts write and many tools show (library/train_util.py and train_network.py
of sd-scripts; https://github.com/kohya-ss/sd-scripts):

    ss_base_model_version       the kind of checkpoint: sd_v1, sd_v2, sdxl_base_v1-0
    ss_sd_model_name            file name of the checkpoint it was trained on
    ss_sd_model_hash            8 hex digits: SHA-256 of 64 KiB, 1 MiB into that checkpoint (an old short hash)
    ss_new_sd_model_hash        SHA-256 of the whole checkpoint
    ss_output_name              the LoRA's own name
    ss_network_module, _dim, _alpha, _args   who made the layers; their rank; strength 1 means alpha divided by rank
    ss_num_train_images         pictures, each as often as its repeats
    ss_tag_frequency            JSON: how often each comma separated tag is in the captions of a folder
    ss_dataset_dirs             JSON: pictures and repeats of each folder
    ss_resolution, ss_batch_size_per_device, ss_gradient_accumulation_steps, ss_gradient_checkpointing,
    ss_learning_rate, ss_unet_lr, ss_optimizer, ss_loss_type, ss_mixed_precision, ss_seed, ss_max_train_steps
                                the parameters, under Kohya's names
    ss_steps                    steps in all, those of a LoRA that was continued included
    ss_training_comment         the trigger word
    sshs_model_hash             SHA-256 of the tensors' bytes, which names a LoRA whatever its metadata says

Times are left out, so that the same inputs give the same file. Ours begin with `comfyui_` and hold the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from comfyui.training.dataset import TrainingImage
from comfyui.training.parameters import TrainingParameters
from comfyui.training.tensors import Tensor

_OLD_HASH_AT, _OLD_HASH_BYTES = 1024 * 1024, 64 * 1024
_OPTIMIZERS = {"AdamW": "torch.optim.adamw.AdamW", "Adam": "torch.optim.adam.Adam"}
_LOSS_TYPES = {"MSE": "l2", "L1": "l1", "Huber": "huber", "SmoothL1": "smooth_l1"}


@dataclass(frozen=True)
class Provenance:
    """What a LoRA was made from and with. `sha256` values are lower-case hex; `previous_steps` came before this
    training; `old_hash` is the checkpoint's ss_sd_model_hash.
    """

    checkpoint: str
    checkpoint_sha256: str
    old_hash: str
    kind: str
    dataset_sha256: str
    comfyui_version: str
    final_loss: float
    existing_sha256: str | None = None
    previous_steps: int = 0

    def as_dict(self, parameters: TrainingParameters) -> dict[str, Any]:
        """All that is recorded beside the LoRA, in parameters.json and in its metadata."""
        return {
            "parameters": parameters.as_dict(),
            "checkpoint": self.checkpoint,
            "checkpoint_sha256": self.checkpoint_sha256,
            "dataset_sha256": self.dataset_sha256,
            "comfyui_version": self.comfyui_version,
            "final_loss": self.final_loss,
            "existing_lora_sha256": self.existing_sha256,
            "total_steps": self.previous_steps + parameters.steps,
        }


def old_model_hash(part: bytes) -> str:
    """ss_sd_model_hash, from the bytes of a checkpoint at `OLD_HASH_RANGE` (fewer where it ends before)."""
    return hashlib.sha256(part).hexdigest()[:8]


OLD_HASH_RANGE = (_OLD_HASH_AT, _OLD_HASH_BYTES)
"""Where in a checkpoint the old short hash looks: first byte, and how many."""


def lora_metadata(
    parameters: TrainingParameters,
    provenance: Provenance,
    images: Sequence[TrainingImage],
    tensors: Mapping[str, Tensor],
    data: bytes,
) -> dict[str, str]:
    """The metadata of the LoRA with these tensors, whose bytes in the file are `data`."""
    p = parameters
    kohya: dict[str, object] = {
        "ss_base_model_version": provenance.kind,
        "ss_v2": provenance.kind == "sd_v2",
        "ss_sd_model_name": provenance.checkpoint,
        "ss_sd_model_hash": provenance.old_hash,
        "ss_new_sd_model_hash": provenance.checkpoint_sha256,
        "ss_output_name": p.lora_name,
        "ss_network_module": "comfyui.TrainLoraNode",
        "ss_network_dim": _rank(tensors) or p.rank,
        "ss_network_alpha": 1.0,
        "ss_network_args": json.dumps({"algo": p.algorithm.lower()}),
        "ss_num_train_images": sum(image.repeats for image in images),
        "ss_num_reg_images": 0,
        "ss_tag_frequency": json.dumps(_tag_frequency(images), ensure_ascii=False),
        "ss_dataset_dirs": json.dumps(_folders(images), ensure_ascii=False),
        "ss_resolution": f"({p.resolution}, {p.resolution})",
        "ss_batch_size_per_device": p.batch_size,
        "ss_gradient_accumulation_steps": p.grad_accumulation_steps,
        "ss_gradient_checkpointing": p.gradient_checkpointing,
        "ss_learning_rate": p.learning_rate,
        "ss_unet_lr": p.learning_rate,
        "ss_optimizer": _OPTIMIZERS.get(p.optimizer, f"torch.optim.{p.optimizer}"),
        "ss_loss_type": _LOSS_TYPES[p.loss_function],
        "ss_mixed_precision": {"bf16": "bf16", "fp32": "no"}.get(p.training_dtype, "None"),
        "ss_seed": p.seed,
        "ss_max_train_steps": p.steps,
        "ss_steps": provenance.previous_steps + p.steps,
        "ss_training_comment": f"trigger word: {p.trigger_word}" if p.trigger_word else "",
        "sshs_model_hash": hashlib.sha256(data).hexdigest(),
    }
    ours = provenance.as_dict(parameters)
    metadata = {key: str(value) for key, value in kohya.items()}
    return metadata | {f"comfyui_{key}": _text(value) for key, value in ours.items() if value is not None}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rank(tensors: Mapping[str, Tensor]) -> int:
    return max((tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_down.weight")), default=0)


def _folder(image: TrainingImage) -> str:
    return PurePosixPath(image.source).parent.name or "img"


def _tag_frequency(images: Sequence[TrainingImage]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for image in images:
        tags = filter(None, (tag.strip() for tag in image.caption.split(",")))
        counts.setdefault(_folder(image), Counter()).update(tags)
    return {folder: dict(sorted(tags.items())) for folder, tags in sorted(counts.items())}


def _folders(images: Sequence[TrainingImage]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for image in images:
        entry = found.setdefault(_folder(image), {"n_repeats": image.repeats, "img_count": 0})
        entry["img_count"] += 1
    return found
