"""The command line of scripts/replicate: its commands, their flags, and help that teaches with examples. Pure.

argparse itself explains what is wrong with a command line, and exits with 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui.local.paths import typed_path
from comfyui.local.replicate import flags
from comfyui.local.weights.arguments import Commands
from comfyui.settings import PROJECT_ROOT
from comfyui.weights.folders import TRAINING_INPUTS

EXIT_CODES = """exit codes:
  0    done
  1    failed; the message says why, and what to do
  2    the command line cannot be understood
  130  stopped by Ctrl-C"""
TOKENS = """tokens:
  REPLICATE_API_TOKEN or --token-file FILE (https://replicate.com/account/api-tokens)
  HF_TOKEN or --hf-token-file FILE, to upload (https://huggingface.co/settings/tokens)
  HF_READ_TOKEN or --hf-read-token-file FILE, a second one that can only read: a training of a private repo takes it
  along to Replicate
  There is no flag for a token itself: every user of a machine can read its command lines. No token is ever shown,
  written down, or sent to anybody else."""
OUTPUT = """output:
  Progress goes to stderr, results go to stdout. With --json, all of it is JSON on stdout, one object on each line."""
WAITING = """waiting:
  A run is asked about again and again until it has ended, less often while nothing changes. `Prefer: wait` is never
  used: it gives up after 60 s, and a cold start takes longer."""


@dataclass(frozen=True)
class Options:
    """What the command line said; a command uses the fields it has flags for."""

    command: str
    json: bool = False
    token_file: Path | None = None
    hf_token_file: Path | None = None
    hf_read_token_file: Path | None = None
    civitai_token_file: Path | None = None
    model: str = ""
    files: dict[str, list[str]] = field(default_factory=dict)
    """Training input → what was given for it: files for upload, links for train, either for ship."""
    images: Path | None = None
    repo: str = ""
    base: str = ""
    public: bool = False
    public_repo: bool = False
    allow_pickle: bool = False
    hardware: str = flags.DEFAULT_HARDWARE
    price: float | None = None
    check: bool = False
    more: tuple[str, ...] = ()
    workflow: Path | None = None
    overrides: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    input: tuple[str, ...] = ()
    input_file: str = ""
    prompt: str | None = None
    seed: int | None = None
    out: Path = PROJECT_ROOT / "outputs"
    state: Path | None = None
    no_wait: bool = False
    local: str = ""
    run_id: str = ""
    follow: bool = False


def parse_arguments(arguments: Sequence[str] | None) -> Options:
    """Read the command line; exits with 2, or with 0 for --help."""
    parser = argparse.ArgumentParser(
        prog="scripts/replicate",
        description="From a folder of weights to a live API on Replicate: a command for each step, or `ship` for all.",
        epilog="Each command has its own --help with an example.\n\n"
        f"{EXIT_CODES}\n\n{TOKENS}\n\n{OUTPUT}\n\n{WAITING}\n\n"
        "REPLICATE_BASE_URL and HF_ENDPOINT name other servers, such as a company's mirror.",
        formatter_class=_Help,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (_ship, _upload, _create, _push, _train, _predict, _status, _cancel, _versions):
        command = add_command(commands)
        command.formatter_class = _Help
        command.add_argument("--json", action="store_true", help="JSON lines on stdout, for programs")
        command.add_argument(
            "--token-file", metavar="FILE", type=typed_path, help="text file with your token of Replicate"
        )
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    command = commands.choices[given["command"]]
    if given["command"] in ("upload", "train", "ship"):
        given["files"] = {name: values for name in TRAINING_INPUTS if (values := given.pop(name))}
    if given["command"] in ("upload", "ship") and not given["files"]:
        command.error("name at least one file, for example --lora FILE")
    if given["command"] in ("train", "predict") and not given["model"] and not given["local"]:
        command.error("name the model with --model owner/name, or a server of your own with --local URL")
    for name, value in given.items():
        given[name] = tuple(value) if isinstance(value, list) else value
    return Options(**given)


class _Help(argparse.HelpFormatter):
    """Wraps sentences, and leaves a text that has lines of its own as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _ship(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "ship",
        usage="%(prog)s [-h] --model OWNER/NAME [--checkpoint FILE] [--lora FILE] … [more flags, below]",
        help="everything: upload, create, push, train, and a first picture",
        description="Take weights from this machine to a picture from your own private API: upload them to Hugging "
        "Face, create the model, push this project to it, train (bake the weights into a version), and run a "
        "workflow. What is done is remembered: after Ctrl-C, a failure or a power cut the same command goes on from "
        "there, and repeats nothing that it paid for. Ctrl-C leaves a run on Replicate running; `cancel` ends it.",
        epilog="example:\n  scripts/replicate ship --checkpoint my.safetensors --lora mimi.safetensors \\\n"
        '      --model me/my-comfyui --prompt "1girl, cat ears, smile"\n\n'
        "A push needs cog and Docker. Without them, --base names a model that is pushed already and takes the same\n"
        "inputs, for example one of a friend's; the training runs its code, with your HF_READ_TOKEN.\n\n"
        f"{TOKENS}\n\n{WAITING}\n\n{EXIT_CODES}",
    )
    flags.add_model(parser, required=True)
    flags.add_files(parser, "FILE", "a file here, or a link")
    parser.add_argument("--repo", metavar="OWNER/REPO", default="", help="on Hugging Face (default: the model's name)")
    parser.add_argument("--public", action="store_true", help="make a public model (default: private)")
    parser.add_argument("--public-repo", action="store_true", help="make a public repo (default: private)")
    flags.add_base(parser)
    flags.add_hardware(parser, "what the model runs on")
    flags.add_price(parser)
    parser.add_argument("--workflow", metavar="FILE", type=typed_path, help="for the picture (default: the example)")
    flags.add_set(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="what the picture shows")
    parser.add_argument("--seed", metavar="N", type=int, help="seed of the picture (default: 42)")
    flags.add_out(parser)
    parser.add_argument(
        "--state", metavar="FILE", type=typed_path, help="what is done so far (default: .data/ship/OWNER@NAME.json)"
    )
    flags.add_hf_token(parser)
    flags.add_train_tokens(parser)
    flags.add_pickle(parser)
    return parser


def _upload(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "upload",
        usage="%(prog)s [-h] --repo OWNER/REPO [--checkpoint FILE] [--lora FILE] … [more flags, below]",
        help="put weight files into a repo on Hugging Face",
        description="Prove each file (its structure, its SHA-256), upload what the repo does not have yet, and print "
        "the link of each with its commit. After an interruption the same command goes on with the first file missing.",
        epilog="example:\n  scripts/replicate upload --repo me/models --lora mimi.safetensors --checkpoint a.sft\n\n"
        f"{TOKENS}\n\n{EXIT_CODES}",
    )
    parser.add_argument("--repo", metavar="OWNER/REPO", required=True, help="made if it is not there")
    flags.add_files(parser, "FILE", "goes into {folder}/ of the repo")
    parser.add_argument("--public", action="store_true", help="make a public repo (default: private)")
    flags.add_hf_token(parser)
    flags.add_pickle(parser)
    return parser


def _create(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "create",
        help="make a model on Replicate",
        description="Make an empty model, private unless --public is given. It gets its versions from push and train.",
        epilog=f"example:\n  scripts/replicate create me/my-comfyui --hardware gpu-t4\n\n{EXIT_CODES}",
    )
    parser.add_argument("model", metavar="OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="let everybody see and run it")
    flags.add_hardware(parser, "what it runs on; a wrong name is answered with the right ones")
    return parser


def _push(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "push",
        help="check everything, then cog push this project",
        description="Look at all that a push needs (cog, Docker, the log-in, cog.yaml, ComfyUI, sizes), then run cog "
        "push, which builds the image here and takes a while the first time.",
        epilog="examples:\n  scripts/replicate push me/my-comfyui\n  scripts/replicate push me/my-comfyui --check\n"
        "  scripts/replicate push me/my-comfyui -- --separate-weights\n\nWhat stands behind -- goes to cog push.\n\n"
        f"{EXIT_CODES}",
    )
    parser.add_argument("model", metavar="OWNER/NAME")
    parser.add_argument("more", nargs="*", metavar="-- FLAG", help="more flags for cog push")
    parser.add_argument("--check", action="store_true", help="only look; push nothing")
    return parser


def _train(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        usage="%(prog)s [-h] --model OWNER/NAME [--checkpoint LINK] [--lora LINK] … [more flags, below]",
        help="bake weights into a new version of the model",
        description="Start a training, follow it, and print the version that it made. Ctrl-C leaves the training "
        "running; `status ID --follow` goes on, `cancel ID` ends it.",
        epilog="example:\n  scripts/replicate train --model me/my-comfyui \\\n"
        "      --checkpoint https://huggingface.co/me/models/resolve/main/checkpoints/my.safetensors \\\n"
        "      --lora https://huggingface.co/me/models/resolve/main/loras/mimi.safetensors\n\n"
        "The inputs are called loras, checkpoints and so on (hf_lora and hf_checkpoints are not there). The link of a\n"
        "file has /resolve/ in it; one with /blob/ is the page about the file, and is put right here.\n\n"
        f"{TOKENS}\n\n{WAITING}\n\n{EXIT_CODES}",
    )
    flags.add_model(parser)
    flags.add_files(parser, "LINK", "for {folder}/")
    parser.add_argument(
        "--images", metavar="FILE", type=typed_path, help="a zip of pictures to train a LoRA from (training_images)"
    )
    parser.add_argument("--input", metavar="NAME=VALUE", action="append", default=[], help="any other training input")
    flags.add_base(parser)
    flags.add_hardware(parser, "whose price the cost is reckoned with")
    flags.add_price(parser)
    flags.add_train_tokens(parser)
    flags.add_pickle(parser)
    flags.add_no_wait(parser)
    flags.add_local(parser)
    flags.add_out(parser, "for the tar that --local makes")
    return parser


def _predict(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "predict",
        usage="%(prog)s [-h] --model OWNER/NAME[:VERSION] WORKFLOW [NODE.INPUT=VALUE …] [more flags, below]",
        help="run a workflow and save what it makes",
        description="Send a workflow, follow it, and save its files under names that overwrite nothing. Ctrl-C cancels "
        "the prediction.",
        epilog="examples:\n  scripts/replicate predict --model me/my-comfyui workflow_api.json 3.seed=5 6.text=fox\n"
        "  scripts/replicate predict --local http://127.0.0.1:5000 workflow_api.json 10.image=@photo.png\n\n"
        "NODE.INPUT=VALUE changes an input of a node, by the node's id; VALUE is JSON, or else text. @FILE sends a\n"
        "file of this machine along. WORKFLOW is the file as ComfyUI exported it: it is escaped here, never by you.\n\n"
        f"{WAITING}\n\n{EXIT_CODES}",
    )
    flags.add_model(parser, version=True)
    parser.add_argument("workflow", metavar="WORKFLOW", type=typed_path, help="a file in API format (or UI format)")
    parser.add_argument("overrides", metavar="NODE.INPUT=VALUE", nargs="*", help="directly behind WORKFLOW")
    flags.add_set(parser)
    parser.add_argument("--input-file", metavar="FILE", default="", help="a file or link for input_file")
    parser.add_argument("--input", metavar="NAME=VALUE", action="append", default=[], help="such as output_format=png")
    flags.add_out(parser)
    flags.add_hardware(parser, "whose price the cost is reckoned with")
    flags.add_price(parser)
    flags.add_no_wait(parser)
    flags.add_local(parser)
    return parser


def _status(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "status",
        help="show a training or prediction",
        description="Show how a training or prediction is, by its id; --follow stays until it has ended, and saves the "
        "files of a prediction.",
        epilog=f"example:\n  scripts/replicate status zz4ibbonubfz7carwiefibzgga --follow\n\n{EXIT_CODES}",
    )
    parser.add_argument("run_id", metavar="ID")
    parser.add_argument("--follow", action="store_true", help="stay until it has ended")
    flags.add_out(parser)
    flags.add_hardware(parser, "whose price the cost is reckoned with")
    flags.add_price(parser)
    return parser


def _cancel(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "cancel",
        help="end a training or prediction",
        description="Ask Replicate to end a training or prediction, so that it costs no more.",
        epilog=f"example:\n  scripts/replicate cancel zz4ibbonubfz7carwiefibzgga\n\n{EXIT_CODES}",
    )
    parser.add_argument("run_id", metavar="ID")
    return parser


def _versions(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "versions",
        help="list the versions of a model",
        description="List the versions of a model, newest first: those that were pushed and those that were trained.",
        epilog=f"example:\n  scripts/replicate versions me/my-comfyui\n\n{EXIT_CODES}",
    )
    parser.add_argument("model", metavar="OWNER/NAME")
    return parser
