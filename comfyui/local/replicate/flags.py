"""Flags that several commands of scripts/replicate share. Pure."""

from __future__ import annotations

import argparse

from comfyui.local.paths import typed_path
from comfyui.local.weights.arguments import flag_of
from comfyui.settings import PROJECT_ROOT
from comfyui.weights.folders import TRAINING_INPUTS

DEFAULT_HARDWARE = "gpu-t4"


def add_model(parser: argparse.ArgumentParser, *, required: bool = False, version: bool = False) -> None:
    """--model, with a version or without."""
    name, text = ("OWNER/NAME[:VERSION]", "default: its newest version") if version else ("OWNER/NAME", "your model")
    parser.add_argument("--model", metavar=name, default="", required=required, help=text)


def add_files(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """A flag for each list of a training, and the plural that is the input's own name."""
    for input_name, folder in TRAINING_INPUTS.items():
        flag = flag_of(input_name)
        shown = text.format(folder=folder)
        parser.add_argument(flag, dest=input_name, action="append", default=[], metavar=metavar, help=shown)
        plural = "--" + input_name.replace("_", "-")
        if plural != flag:
            # The name of the training's own input, for those who have it in their fingers.
            parser.add_argument(plural, dest=input_name, action="append", help=argparse.SUPPRESS)


def add_base(parser: argparse.ArgumentParser) -> None:
    """--base."""
    parser.add_argument(
        "--base", metavar="OWNER/NAME[:VERSION]", default="", help="what is trained (default: the model itself)"
    )


def add_hardware(parser: argparse.ArgumentParser, text: str) -> None:
    """--hardware."""
    parser.add_argument(
        "--hardware", metavar="SKU", default=DEFAULT_HARDWARE, help=f"{text} (default {DEFAULT_HARDWARE})"
    )


def add_price(parser: argparse.ArgumentParser) -> None:
    """--price."""
    parser.add_argument("--price", metavar="USD", type=float, help="dollars a second of it costs, if you know better")


def add_set(parser: argparse.ArgumentParser) -> None:
    """--set."""
    parser.add_argument(
        "--set", metavar="NODE.INPUT=VALUE", action="append", default=[], help="change an input of a node"
    )


def add_out(parser: argparse.ArgumentParser, text: str = "for the files") -> None:
    """--out."""
    outputs = PROJECT_ROOT / "outputs"
    parser.add_argument(
        "--out", metavar="DIR", type=typed_path, default=outputs, help=f"{text} (default outputs/ of the project)"
    )


def add_hf_token(parser: argparse.ArgumentParser) -> None:
    """The token that uploads."""
    parser.add_argument("--hf-token-file", metavar="FILE", type=typed_path, help="text file with your token to upload")


def add_train_tokens(parser: argparse.ArgumentParser) -> None:
    """The tokens that a training takes along."""
    parser.add_argument(
        "--hf-read-token-file", metavar="FILE", type=typed_path, help="text file with a read token for the training"
    )
    parser.add_argument(
        "--civitai-token-file", metavar="FILE", type=typed_path, help="text file with your token of Civitai"
    )


def add_pickle(parser: argparse.ArgumentParser) -> None:
    """--allow-pickle."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="take .ckpt, .pt, .pth and .bin files, which can run any code when they are loaded",
    )


def add_no_wait(parser: argparse.ArgumentParser) -> None:
    """--no-wait."""
    parser.add_argument("--no-wait", action="store_true", help="print the run's id and leave it running")


def add_local(parser: argparse.ArgumentParser) -> None:
    """--local."""
    parser.add_argument(
        "--local", metavar="URL", default="", help="use a Cog server of your own instead, as scripts/serve starts it"
    )
