"""scripts/generate: from a prompt, a checkpoint and LoRAs to pictures, on a server that runs already.

    arguments ──► Picture ──► workflow ──► Cog's HTTP API ──► files

Not for: workflows of a person's own, which go to that API as they are.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from comfyui.errors import ComfyUIModelError, RequestError
from comfyui.local.generate.arguments import TOKEN_VARIABLE, URL_VARIABLE, Options, parse_arguments
from comfyui.local.generate.config import is_link
from comfyui.local.generate.workflow import Beginning, Lora, Picture, fitted_size, picture_workflow
from comfyui.local.predictions_http import Endpoint, PredictionsClient
from comfyui.local.run_display import RunDisplay
from comfyui.local.saved_outputs import save_outputs
from comfyui.local.terminal import printable
from comfyui.local.tokens import read_token
from comfyui.settings import Settings
from comfyui.url_policy import display_url, origin
from comfyui.weights.judge.formats import GGUF_EXTENSIONS, PICKLE_EXTENSIONS, SAFETENSORS_EXTENSIONS
from comfyui.weights.linked.names import BY_LINK
from comfyui.workflow.changes import MAX_SEED

FAILED = 1
INTERRUPTED = 130
WEIGHT_SUFFIXES = SAFETENSORS_EXTENSIONS + GGUF_EXTENSIONS + PICKLE_EXTENSIONS
IMAGE_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}
"""Pillow's names of the formats that --image takes, each with the ending that the predictor gives such a file."""
TURNED = (5, 6, 7, 8)
"""The Exif orientations that swap width and height (Exif 2.32, 4.6.4 A); LoadImage turns the picture upright."""


@dataclass(frozen=True)
class Made:
    """What came back: paths of files (or URLs, where the server puts them elsewhere), the seed, and the metrics."""

    files: list[str]
    seed: int
    metrics: Mapping[str, Any]
    id: str


@dataclass(frozen=True)
class InputImage:
    """A picture to begin from: a data: URI of the file, its name in the workflow, its width and height upright."""

    uri: str
    name: str
    size: tuple[int, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 failed with a reason, 2 wrong usage, 130 interrupted."""
    options = parse_arguments(arguments)
    start = time.monotonic()
    try:
        settings = Settings.from_environ()
        image = None if options.image is None else read_image(options.image)
        endpoint = find_endpoint(options)
        picture = describe(options, settings, image, local=endpoint.is_local)
        if options.print_workflow:
            print(json.dumps(picture_workflow(picture).prompt(), indent=2, ensure_ascii=False))
            return 0
        made = generate(options, endpoint, picture, image)
    except (ComfyUIModelError, OSError) as error:
        _failed(options, type(error).__name__, str(error))
        return FAILED
    except KeyboardInterrupt:
        _failed(options, "Interrupted", "Stopped; the prediction was cancelled, and nothing was saved.")
        return INTERRUPTED
    print(f"Done in {time.monotonic() - start:.1f} s.", file=sys.stderr)
    print(json.dumps(asdict(made)) if options.json else "\n".join(made.files))
    return 0


def _failed(options: Options, name: str, message: str) -> None:
    if options.json:
        print(json.dumps({"error": name, "message": message}))
    else:
        print(f"\n{printable(message)}", file=sys.stderr)


def find_endpoint(options: Options, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """The server, with its token. The environment's token belongs to the environment's server, and to no other."""
    token = None
    named = environ.get(URL_VARIABLE)
    if options.token_file is not None or (named and origin(named) == origin(options.url)):
        token = read_token(options.token_file, TOKEN_VARIABLE)
    return Endpoint(options.url, token)


def link_tokens(options: Options, endpoint: Endpoint) -> dict[str, str]:
    """The tokens for links to weights, by the predictor's names for them. Raises RequestError as `check_secret` does.

    Only those given in files: one of the environment was not meant for this server.
    """
    files = {"huggingface_token": options.hf_token_file, "civitai_token": options.civitai_token_file}
    tokens = {name: read_token(file, "") for name, file in files.items() if file is not None}
    for name in tokens:
        endpoint.check_secret(name)
    return {name: token for name, token in tokens.items() if token is not None}


def describe(options: Options, settings: Settings, image: InputImage | None, *, local: bool) -> Picture:
    """The picture that the options ask for, with whole names. Raises RequestError where no checkpoint is certain.

    `local` says that the server is this machine's, so that its models folders can be looked into.
    """
    size = options.size
    if image is not None and not options.size_given:
        size = fitted_size(*image.size, size[0] * size[1])
    loras = _names(settings, "loras") if local else []
    return Picture(
        prompt=options.prompt,
        negative=options.negative,
        checkpoint=_checkpoint(options.checkpoint, _names(settings, "checkpoints") if local else []),
        loras=tuple(
            Lora(_whole_name(lora.name, loras), options.strength if lora.strength is None else lora.strength)
            for lora in options.loras
        ),
        seed=random.SystemRandom().randint(0, MAX_SEED) if options.seed is None else options.seed,
        steps=options.steps,
        cfg=options.cfg,
        sampler=options.sampler,
        scheduler=options.scheduler,
        width=size[0],
        height=size[1],
        batch=options.batch,
        beginning=None if image is None else Beginning(image.name, options.denoise),
    )


def generate(options: Options, endpoint: Endpoint, picture: Picture, image: InputImage | None) -> Made:
    """Run the picture's workflow and save what it makes. Raises the errors of comfyui.errors, and OSError."""
    inputs = {
        "workflow_json": json.dumps(picture_workflow(picture).prompt()),
        "output_format": options.format,
        "output_quality": options.quality,
        "randomise_seeds": False,
        **({} if image is None else {"input_file": image.uri}),
        **link_tokens(options, endpoint),
    }
    # A folder that cannot be made is better known before minutes of work.
    options.out.mkdir(parents=True, exist_ok=True)
    with RunDisplay(sys.stderr, verbose=options.verbose) as display, PredictionsClient(endpoint) as client:
        display.say(summary(picture))
        answer = client.predict(inputs, say=display.say, on_log=display.log, wait_s=options.wait_s)
    files = save_outputs(answer.succeeded(), options.out, "generate")
    return Made(files, picture.seed, answer.metrics, answer.id)


def summary(picture: Picture) -> str:
    """The line from which a person can make the picture again."""
    loras = "".join(f", LoRA {_shown(lora.name)}:{lora.strength:g}" for lora in picture.loras)
    size = f"{picture.width}x{picture.height}, {picture.steps} steps"
    return f"Seed {picture.seed} (--seed {picture.seed} makes it again), {size}, {_shown(picture.checkpoint)}{loras}"


def read_image(path: Path) -> InputImage:
    """A picture to begin from. Raises RequestError for a file that is none, or has another format than we send."""
    try:
        with Image.open(path) as image:
            kind, (width, height) = image.format or "", image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
        content = path.read_bytes()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"--image {path} cannot be read as a picture: {error}.") from error
    if kind not in IMAGE_SUFFIXES:
        raise RequestError(f"--image {path} is a picture in the format {kind}; save it as png, jpg or webp.")
    uri = f"data:{Image.MIME[kind]};base64,{base64.b64encode(content).decode()}"
    return InputImage(uri, f"input.{IMAGE_SUFFIXES[kind]}", (height, width) if turned else (width, height))


def _names(settings: Settings, folder: str) -> list[str]:
    """The weights in a model folder of this machine, as ComfyUI names them: what was restored here, and models/."""
    # scripts/serve and the quickstart restore into the first (predictor_environ).
    roots = [settings.data_dir / "models" / folder, settings.models_dir / folder]
    files = {
        path.relative_to(root).as_posix()
        for root in roots
        for path in root.rglob("*")
        if path.suffix.lower() in WEIGHT_SUFFIXES and BY_LINK not in path.parts and path.is_file()
    }
    return sorted(files)


def _checkpoint(named: str | None, known: Sequence[str]) -> str:
    if named is not None:
        return _whole_name(named, known)
    if len(known) == 1:
        return known[0]
    there = f" There are: {', '.join(known)}." if known else ""
    raise RequestError(f"Which checkpoint? Name it with --checkpoint, or in the file generate.toml.{there}")


def _whole_name(named: str, known: Sequence[str]) -> str:
    """The name with its ending: that of a file that is known, else the usual one."""
    if is_link(named) or named.lower().endswith(WEIGHT_SUFFIXES):
        return named
    usual = f"{named}{SAFETENSORS_EXTENSIONS[0]}"
    others = [name for name in known if name.rpartition(".")[0] == named]
    return usual if usual in others or not others else others[0]


def _shown(name: str) -> str:
    """A name fit for a screen: the query of a link may hold a secret."""
    return display_url(name) if is_link(name) else name


if __name__ == "__main__":
    sys.exit(main())
