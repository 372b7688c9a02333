"""The command line of scripts/weights: its commands, their flags, and help that teaches with examples. Pure.

argparse itself explains what is wrong with a command line, and exits with 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from comfyui.errors import RequestError
from comfyui.local.paths import typed_path, typed_url_or_path
from comfyui.settings import PROJECT_ROOT
from comfyui.suggest import nearest_input
from comfyui.weights.folders import MODEL_FOLDERS, TRAINING_INPUTS
from comfyui.weights.manifest import MANIFEST_NAME

EXIT_CODES = """exit codes:
  0    done, and everything is proven
  1    failed, or something is wrong; the message says what
  2    the command line cannot be understood
  130  stopped by Ctrl-C"""
TOKENS = """tokens:
  for private or gated files, from the environment (HF_TOKEN, CIVITAI_TOKEN) or from a file (--hf-token-file,
  --civitai-token-file). There is no flag for a token itself: every user of a machine can read its command lines.
  A token is sent to its own site only, and never shown."""
OUTPUT = """output:
  Progress goes to stderr, as a bar on a terminal and as lines elsewhere; results go to stdout. With --json, all of it
  is JSON on stdout, one object on each line."""


@dataclass(frozen=True)
class Options:
    """What the command line said; a command uses the fields it has flags for."""

    command: str
    json: bool = False
    links: dict[str, list[str]] = field(default_factory=dict)
    out: Path = Path("weights.tar")
    allow_pickle: bool = False
    hf_token_file: Path | None = None
    civitai_token_file: Path | None = None
    target: str = ""
    models_folder: Path = Path()
    folder: str = ""
    manifest: Path = PROJECT_ROOT / MANIFEST_NAME
    quick: bool = False
    unproven_ok: bool = False
    extra_ok: bool = False
    delete: bool = False


def parse_arguments(arguments: Sequence[str] | None) -> Options:
    """Read the command line; exits with 2, or with 0 for --help."""
    parser = argparse.ArgumentParser(
        prog="scripts/weights",
        description="Weights that cannot arrive broken: bake links into one verified tar, check it, restore it, and "
        "keep the weights of your own image.",
        epilog=f"Each command has its own --help with an example. docs/weights.md tells all.\n\n{EXIT_CODES}\n\n"
        f"{TOKENS}\n\n{OUTPUT}",
        formatter_class=_Help,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (_bake, _verify, _restore, _add, _remove, _pull, _list):
        command = add_command(commands)
        command.formatter_class = _Help
        command.add_argument("--json", action="store_true", help="JSON lines on stdout, for programs")
    given = vars(parser.parse_args(arguments))
    if given["command"] == "bake":
        given["links"] = {name: given.pop(name) for name in TRAINING_INPUTS}
        if not any(given["links"].values()):
            commands.choices["bake"].error("name at least one link, for example --lora URL")
    return Options(**given)


def flag_of(input_name: str) -> str:
    """The flag for one file of a training input: "loras" → "--lora"."""
    name = "embeddings" if input_name == "embedding_models" else input_name
    for plural, singular in (("ches", "ch"), ("ss", "ss"), ("s", "")):
        if name.endswith(plural):
            name = name.removesuffix(plural) + singular
            break
    return "--" + name.replace("_", "-")


class _Help(argparse.HelpFormatter):
    """Wraps sentences, and leaves a text that has lines of its own as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _bake(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "bake",
        usage="%(prog)s [-h] [--checkpoint LINK] [--lora LINK] … [--out TAR] [more flags, below]",
        help="fetch links into one verified tar",
        description="Fetch every link, prove each file, and lay them into one tar with a manifest. A flag may be given "
        "several times. A bake that was interrupted goes on where it stopped when the same command is run again.",
        epilog="example:\n  scripts/weights bake --checkpoint hf://me/models/checkpoints/my.safetensors \\\n"
        "      --lora https://civitai.com/models/1234 --lora me/one-lora-repo --out weights.tar\n\n"
        "LINK is a link of Hugging Face, Civitai or Replicate, any other http(s) link, hf://OWNER/REPO/FILE, or\n"
        "OWNER/REPO with one weights file in it; behind it, #name=my.safetensors or #sha256=… say more. @FILE reads\n"
        f"links from a text file, one on each line.\n\n{TOKENS}\n\n{EXIT_CODES}",
    )
    for input_name, folder in TRAINING_INPUTS.items():
        flag = flag_of(input_name)
        parser.add_argument(
            flag, dest=input_name, action="append", default=[], metavar="LINK", help=f"goes into {folder}/"
        )
        plural = "--" + input_name.replace("_", "-")
        if plural != flag:
            # The name of the training's own input, for those who have it in their fingers.
            parser.add_argument(plural, dest=input_name, action="append", help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=typed_path, default=typed_path("weights.tar"), metavar="TAR", help="default: weights.tar"
    )
    _add_pickle(parser)
    _add_tokens(parser)
    return parser


def _verify(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "verify",
        help="prove every byte of a tar or of a models folder",
        description="Read every file once and compare it with its manifest: size, SHA-256 and structure. Nothing is "
        "written. A tar has its manifest in itself; a folder is compared with the project's, or with --manifest.",
        epilog="examples:\n  scripts/weights verify weights.tar\n"
        f"  scripts/weights verify models --manifest weights.tar\n\n{EXIT_CODES}",
    )
    parser.add_argument("target", metavar="TAR_OR_FOLDER", type=_place, help="a tar (path or URL) or a models folder")
    _add_manifest(parser, "for a folder: a manifest, or a tar that has one (default: the project's)")
    parser.add_argument(
        "--extra-ok", action="store_true", help="for a folder: files that the manifest does not have are no fault"
    )
    return parser


def _restore(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "restore",
        help="put a tar's files into a models folder",
        description="Bring the files of a tar into a models folder, each proven before it gets its name. What is there "
        "and right is kept; a file that is bad in the tar is fetched from its own link.",
        epilog=f"example:\n  scripts/weights restore weights.tar ~/ComfyUI/models\n\n{EXIT_CODES}",
    )
    parser.add_argument("target", metavar="TAR_OR_URL", type=typed_url_or_path, help="a tar: a path or a URL")
    parser.add_argument("models_folder", metavar="MODELS_FOLDER", type=typed_path, help="made if it is not there")
    parser.add_argument(
        "--unproven-ok",
        action="store_true",
        help="take a tar without a manifest too, whose files only their structure can prove",
    )
    return parser


def _add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "add",
        help="write a file into the project's manifest",
        description="Write the entry of one file, with its size and SHA-256, into the project's manifest. Where the "
        "site publishes the SHA-256, nothing is fetched; else the file is, into the models folder, to know it.",
        epilog=f"example:\n  scripts/weights add hf://me/models/loras/my.safetensors --to loras\n\n{TOKENS}\n\n"
        f"{EXIT_CODES}",
    )
    parser.add_argument("target", metavar="LINK", help="as for bake")
    parser.add_argument("--to", dest="folder", metavar="FOLDER", type=_model_folder, required=True, help="as in loras")
    _add_pickle(parser)
    _add_manifest(parser)
    _add_tokens(parser)
    return parser


def _remove(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "remove",
        help="take a file out of the project's manifest",
        description="Take an entry out of the project's manifest. Its file stays in the models folder, and would go "
        "into the image, unless --delete removes it too.",
        epilog=f"example:\n  scripts/weights remove loras/my.safetensors --delete\n\n{EXIT_CODES}",
    )
    parser.add_argument("target", metavar="PATH", help="as list shows it: loras/my.safetensors")
    parser.add_argument("--delete", action="store_true", help="remove the file from the models folder, too")
    _add_manifest(parser)
    return parser


def _pull(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "pull",
        help="fetch the manifest's files into the models folder",
        description="Make the models folder hold every file of the project's manifest, proven. Run it before cog push: "
        "what lies in models/ becomes part of the image. Files that are there are read and hashed, and fetched again "
        "where they are wrong; --quick only looks at their size and structure.",
        epilog=f"example:\n  scripts/weights pull && cog push r8.im/me/my-comfyui\n\n{TOKENS}\n\n{EXIT_CODES}",
    )
    parser.add_argument("--quick", action="store_true", help="do not hash the files that are there already")
    _add_manifest(parser)
    _add_tokens(parser)
    return parser


def _list(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "list",
        help="show the manifest's files and what is there of them",
        description="Show each file of the project's manifest and whether it lies in the models folder, by its size "
        "alone (verify proves it), and which other weights lie there.",
        epilog=f"example:\n  scripts/weights list\n\n{EXIT_CODES}\nHere 0 means that the list could be made.",
    )
    _add_manifest(parser)
    return parser


def _add_tokens(parser: argparse.ArgumentParser) -> None:
    for site, flag in (("Hugging Face", "--hf-token-file"), ("Civitai", "--civitai-token-file")):
        parser.add_argument(flag, metavar="FILE", type=typed_path, help=f"text file with your token of {site}")


def _add_pickle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="take .ckpt, .pt, .pth and .bin files, which can run any code when they are loaded",
    )


def _add_manifest(parser: argparse.ArgumentParser, text: str = "another manifest than the project's") -> None:
    parser.add_argument("--manifest", metavar="FILE", type=typed_path, default=PROJECT_ROOT / MANIFEST_NAME, help=text)


def _place(text: str) -> str:
    return text if "://" in text else str(typed_path(text))


def _model_folder(text: str) -> str:
    name = text.strip("/")
    folder = TRAINING_INPUTS.get(name, name)
    if folder in MODEL_FOLDERS:
        return folder
    near = nearest_input(name, sorted(MODEL_FOLDERS))
    raise argparse.ArgumentTypeError(
        f"{text!r} is no model folder of ComfyUI{f'; did you mean {near}?' if near else ''} Known are: "
        + ", ".join(sorted(MODEL_FOLDERS))
    )


def read_list(entry: str) -> str:
    """A flag's value as lines of a training's list: a link, or the content of the file that @FILE names.

    Raises RequestError for a file of this machine given as a link, and a list that cannot be read.
    """
    if entry.startswith("@"):
        path = typed_path(entry[1:])
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"The list {path} cannot be read: {error}.") from error
    path = typed_path(entry)
    if "://" not in entry and path.is_file():
        raise RequestError(
            f"{entry} is a file on this machine, and bake takes links: the manifest says where each file can be had "
            f"again. Upload it first (hf upload OWNER/REPO {path.name}), or try it out with scripts/quickstart, which "
            "takes files."
        )
    return entry
