"""The command line of scripts/generate: its flags, the small file with a person's own names, and what they mean.

A flag counts before the file, the file before what is built in. argparse itself explains what is wrong with a command
line, and exits with 2; a mistake in the file is explained the same way.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyui.local.generate.config import SETTINGS, Config, LoraChoice, lora_choice, read_count, read_seconds, read_seed
from comfyui.local.paths import typed_path
from comfyui.settings import PROJECT_ROOT

CONFIG_NAME = "generate.toml"
LOCAL_URL = "http://127.0.0.1:5000"
"""Where scripts/serve listens unless told otherwise."""
URL_VARIABLE = "COG_SERVER_URL"
TOKEN_VARIABLE = "COG_SERVER_TOKEN"  # noqa: S105 - the name of a variable

EXAMPLE = f"""examples:
  scripts/generate --checkpoint my --lora mimi --prompt "1girl, cat ears, smile"
  scripts/generate --prompt "1girl" --lora mimi:0.7 --lora hf://me/models/loras/ink.safetensors:0.4 --seed 7
  scripts/generate --prompt "oil painting" --image photo.jpg --denoise 0.6

LoRAs:
  NAME is a file of the server's models/loras (its ending may be left out), a link (https://… or hf://…), or a short
  name of your own. :STRENGTH behind it is optional; --strength counts for those without. A link that itself ends in a
  colon and a number needs one. Several LoRAs are applied in the order given.

{CONFIG_NAME} in the project's folder (or --config FILE) holds short names and your own defaults:
  checkpoint = "shiitakeMix_v10"
  size = "832x1216"
  [loras]
  mimi = "mimi_v3.safetensors:0.7"
  ink = "hf://me/models/loras/ink.safetensors"

server:
  scripts/serve runs one on this machine. For another, give --url and, if it wants one, a token in a file
  (--token-file); or export {URL_VARIABLE} and {TOKEN_VARIABLE}, which belong together. There is no flag for a token
  itself: every user of a machine can read its command lines. It is sent to that server only, and never shown.
  Links to private weights need your token of their site: the server gets it too (--hf-token-file,
  --civitai-token-file), since it is the server that fetches them.

output:
  The paths of the pictures go to stdout, everything else to stderr. With --json, stdout gets one JSON object: files,
  seed, metrics and id, or error and message.

exit codes:
  0    done
  1    failed; the message says why
  2    the command line cannot be understood
  130  stopped by Ctrl-C; the prediction was cancelled"""


@dataclass(frozen=True)
class Options:
    """What the command line and the file said; `checkpoint` and `seed` are None where neither did.

    `size` is width and height in pixels; `size_given` says that it was on the command line itself.
    """

    prompt: str
    negative: str
    checkpoint: str | None
    loras: tuple[LoraChoice, ...]
    strength: float
    seed: int | None
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    size: tuple[int, int]
    size_given: bool
    batch: int
    image: Path | None
    denoise: float
    format: str
    quality: int
    out: Path
    url: str
    token_file: Path | None
    hf_token_file: Path | None
    civitai_token_file: Path | None
    wait_s: float
    print_workflow: bool
    json: bool
    verbose: bool


def parse_arguments(arguments: Sequence[str] | None, environ: Mapping[str, str] = os.environ) -> Options:
    """Read the command line and the file it goes with; exits with 2, or with 0 for --help."""
    parser = _parser(environ)
    given = vars(parser.parse_args(arguments))
    path: Path = given.pop("config")
    try:
        config = Config.read(path, needed=path != PROJECT_ROOT / CONFIG_NAME)
        values = {name: given[name] if given[name] is not None else config.value(name) for name in SETTINGS}
        loras = tuple(config.lora(choice) for choice in given.pop("lora"))
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    values["size_given"] = given["size"] is not None
    return Options(**{**given, **values, "loras": loras})


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/generate",
        usage="%(prog)s --prompt TEXT [--checkpoint NAME] [--lora NAME[:STRENGTH]] … [more flags, below]",
        description="Make pictures with a checkpoint and a stack of LoRAs, on the server of scripts/serve or another.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is made")
    what.add_argument("--prompt", metavar="TEXT", required=True, help="what the picture shows")
    what.add_argument(
        "--lora", metavar="NAME[:STRENGTH]", type=lora_choice, action="append", default=[], help="may be given again"
    )
    for name, setting in SETTINGS.items():
        default = f" (default {setting.default})" if setting.default else ""
        what.add_argument(f"--{name}", metavar=setting.metavar, type=setting.read, help=setting.help + default)
    what.add_argument("--seed", metavar="N", type=read_seed, help="make the same picture again (default: a new number)")
    what.add_argument("--batch", metavar="N", type=read_count, default=1, help="pictures at once (default 1)")
    what.add_argument("--image", metavar="FILE", type=typed_path, help="picture to begin from (png, jpg or webp)")
    how = parser.add_argument_group("how")
    how.add_argument("--out", metavar="DIR", type=typed_path, default=PROJECT_ROOT / "outputs", help="default outputs/")
    how.add_argument("--config", metavar="FILE", type=typed_path, default=PROJECT_ROOT / CONFIG_NAME, help="see below")
    how.add_argument("--print-workflow", action="store_true", help="print the workflow (API format) and run nothing")
    how.add_argument("--json", action="store_true", help="one JSON object on stdout, for programs")
    how.add_argument("--verbose", action="store_true", help="show ComfyUI's own log too")
    where = parser.add_argument_group("where")
    url = environ.get(URL_VARIABLE) or LOCAL_URL
    where.add_argument("--url", metavar="URL", default=url, help=f"the server (default {LOCAL_URL})")
    where.add_argument("--token-file", metavar="FILE", type=typed_path, help="text file with the server's token")
    for site, flag in (("Hugging Face", "--hf-token-file"), ("Civitai", "--civitai-token-file")):
        where.add_argument(
            flag, metavar="FILE", type=typed_path, help=f"text file with your token of {site}, for links to weights"
        )
    where.add_argument(
        "--wait", metavar="S", dest="wait_s", type=read_seconds, default=600.0, help="for a busy server (default 600 s)"
    )
    return parser
