"""The command line of scripts/train-lora: what may be said, and what it means."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from comfyui.local.paths import typed_path, typed_url_or_path
from comfyui.run import Limits
from comfyui.training.fitting import FITS
from comfyui.training.parameters import (
    ALGORITHMS,
    LORA_DTYPES,
    LOSS_FUNCTIONS,
    OPTIMIZERS,
    TRAINING_DTYPES,
    TrainingParameters,
)

_CHOICES = {
    "optimizer": OPTIMIZERS,
    "loss_function": LOSS_FUNCTIONS,
    "algorithm": ALGORITHMS,
    "training_dtype": TRAINING_DTYPES,
    "lora_dtype": LORA_DTYPES,
    "fit": FITS,
}
_HELP = {
    "trigger_word": "the word that calls the subject: goes into every caption",
    "steps": "steps of the optimizer; some hundreds to a few thousand make a LoRA",
    "learning_rate": "how far each step goes",
    "rank": "what the LoRA can hold, and its size",
    "batch_size": "pictures at once; 4 take the work of 16, since each gets the captions of all",
    "grad_accumulation_steps": "batches for each step: as good as a larger batch",
    "training_dtype": "what is computed in; none is the checkpoint's own type",
    "resolution": "512 for SD 1.5, 1024 for SDXL",
    "fit": "buckets keeps the pictures' shapes, crop cuts squares",
    "seed": "the same seed, pictures and parameters give the same LoRA",
    "sample_prompt": "prompt of the sample pictures, in place of the trigger word",
    "sample_every": "a sample after each so many steps, too; 0 for those at the end alone",
}


@dataclass(frozen=True)
class Options:
    """What the command line said; `checkpoint` and `existing_lora` are links or paths."""

    images: Path
    checkpoint: str
    out: Path
    existing_lora: str | None
    overwrite: bool
    verbose: bool
    limits: Limits
    parameters: TrainingParameters


def parse_arguments(arguments: Sequence[str] | None) -> Options:
    """Read the command line; argparse explains what is wrong with it and exits with 2. Raises TrainingInputError for
    values that a training cannot have.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/train-lora",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a LoRA from pictures, with ComfyUI's own training, on this machine.",
        epilog="DIR holds pictures (PNG, JPEG, WebP), with captions or without: name.txt beside name.jpg,\n"
        "caption.csv, metadata.jsonl, or Kohya's folders (10_subject: ten times each). A zip or tar of such a folder\n"
        "works too.\n\n"
        "example:\n"
        "  scripts/train-lora photos/ --checkpoint hf://me/models/sd15.safetensors --out zorb.safetensors \\\n"
        "      --trigger-word zorb --steps 1500 --learning-rate 0.0001\n\n"
        "Beside the LoRA, zorb-training/ gets the losses (CSV and PNG), a picture without and with the LoRA, and all\n"
        "parameters. Private links take HF_TOKEN and CIVITAI_TOKEN from the environment. docs/training.md tells all.",
    )
    parser.add_argument("images", metavar="DIR", type=typed_path, help="folder, zip or tar of pictures")
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=typed_url_or_path, required=True, help="what to train on: a file or a link"
    )
    parser.add_argument("--out", metavar="FILE", type=typed_path, required=True, help="the LoRA: my.safetensors")
    parser.add_argument(
        "--existing-lora", metavar="FILE", type=typed_url_or_path, help="train this LoRA of ComfyUI's further"
    )
    for field in fields(TrainingParameters):
        if field.name in ("lora_name", "gradient_checkpointing"):
            continue
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            choices=_CHOICES.get(field.name),
            metavar=None if field.name in _CHOICES else "X",
            help=_help(field.name, field.default),
        )
    parser.add_argument("--no-gradient-checkpointing", action="store_true", help="faster, with more GPU memory")
    parser.add_argument("--timeout", metavar="S", type=float, default=0, help="seconds for all (default 0: no limit)")
    parser.add_argument("--stall-timeout", metavar="S", type=float, default=1800, help="seconds without a sign of life")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    parser.add_argument("--verbose", action="store_true", help="show what ComfyUI prints while it starts, too")
    given = vars(parser.parse_args(arguments))
    if given["out"].suffix != ".safetensors":
        parser.error(f"--out {given['out'].name}: the name of a LoRA ends in .safetensors")
    values = {field.name: given[field.name] for field in fields(TrainingParameters) if field.name in given}
    parameters = TrainingParameters(
        lora_name=given["out"].stem, gradient_checkpointing=not given["no_gradient_checkpointing"], **values
    )
    return Options(
        images=given["images"],
        checkpoint=given["checkpoint"],
        out=given["out"],
        existing_lora=given["existing_lora"],
        overwrite=given["overwrite"],
        verbose=given["verbose"],
        limits=Limits(given["timeout"] or None, given["stall_timeout"] or None),
        parameters=parameters,
    )


def _help(name: str, default: object) -> str:
    words = _HELP.get(name, "")
    return words if default == "" else f"{words} (default {default})".strip()
