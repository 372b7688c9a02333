"""From nothing to a picture on this machine, with the real parts: bake in Cog's train server, restore and run in its
predict server.

    weights named by URL ──► train server ──► weights.tar ──► predict server ──► pictures
    pictures to train on ─┘  (a LoRA, if there are any)

Not for: anything the product itself does; that lives where Replicate runs it too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui.deadline import Deadline
from comfyui.engine.device import runs_on_cpu
from comfyui.engine.upstream import ensure_upstream
from comfyui.errors import ComfyUIModelError, EngineError, RequestError
from comfyui.local.cog_server import CogServer
from comfyui.local.demo.weights import make_demo_weights
from comfyui.local.demo.workflow import with_prompt, with_seed, with_values
from comfyui.local.file_server import serve_files
from comfyui.local.paths import typed_path, typed_url_or_path
from comfyui.local.saved_outputs import save_outputs
from comfyui.settings import PROJECT_ROOT, Settings
from comfyui.weights.manifest import Manifest
from comfyui.weights.restore.restore import read_manifest
from comfyui.workflow.changes import MAX_SEED
from comfyui.workflow.parse import Workflow, parse_workflow

EXAMPLES = PROJECT_ROOT / "examples" / "workflows"
DEMO_CHECKPOINT = "checkpoints/tiny-sd15"
DEMO_LORA = "loras/tiny-sd15-lora"
REAL_SIZE = {"width": 512, "height": 512, "steps": 20}
"""For a checkpoint of the person's own; the demo's 256x256 in 4 steps is for a CPU."""
DEMO_TRAINING = {"steps": 40, "resolution": 128}
"""Enough for the demo checkpoint, which knows nothing to begin with ..."""
REAL_TRAINING = {"steps": 1000, "resolution": 512}
"""... and a first try with a real one of the SD 1.5 kind."""
TRIGGER_WORD = "my subject"
SETUP_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Options:
    """What the command line said; `checkpoint` and `lora` are URLs or paths, None for the demo's. `images` is a folder,
    zip or tar of pictures to train a LoRA from, None for no training.
    """

    checkpoint: str | None
    lora: str | None
    images: Path | None
    trigger_word: str
    train_steps: int | None
    workflow: Path | None
    prompt: str | None
    seed: int
    lora_strength: float | None
    out: Path
    rebake: bool
    verbose: bool


@dataclass(frozen=True)
class BakeOrder:
    """A training: its inputs, what its server's environment needs, and what tells one order from another."""

    inputs: Mapping[str, Any]
    environ: Mapping[str, str]
    identity: str


class Steps:
    """Numbered steps on the terminal, each with the seconds it took."""

    def __init__(self, count: int, *, verbose: bool) -> None:
        self._count = count
        self._number = 0
        self._verbose = verbose

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the step's title, then its seconds once the block has succeeded."""
        self._number += 1
        print(f"[{self._number}/{self._count}] {title}", flush=True)
        start = time.monotonic()
        yield
        print(f"      done in {time.monotonic() - start:.1f} s", flush=True)

    def line(self, text: str) -> None:
        """A line below the current step."""
        print(f"      {text}", flush=True)

    def server_line(self, text: str) -> None:
        """A line of a server's log: shown only to those who asked for it."""
        if self._verbose:
            self.line(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 failed with a reason, 2 wrong usage, 130 interrupted."""
    options = parse_arguments(arguments)
    start = time.monotonic()
    try:
        pictures = run(options)
    except (ComfyUIModelError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nStopped; everything that was started has ended. The next run goes on from what is done.", file=sys.stderr
        )
        return 130
    print(f"\nDone in {time.monotonic() - start:.1f} s. Your picture{'s' if len(pictures) > 1 else ''}:")
    for picture in pictures:
        print(f"  {picture}")
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> Options:
    """Read the command line; argparse itself explains what is wrong with it and exits with 2."""
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart",
        description="Bake weights into a verified tar, restore them in the real Cog predictor, run a ComfyUI workflow "
        "and save the picture. Without arguments it makes tiny demo weights, which run on any CPU.",
        epilog="Example: scripts/quickstart --checkpoint https://huggingface.co/me/models/resolve/main/a.safetensors "
        '--lora https://huggingface.co/me/models/resolve/main/b.safetensors --prompt "a red fox in the snow"',
    )
    parser.add_argument(
        "--checkpoint", metavar="URL", type=typed_url_or_path, help="checkpoint to bake, or a file here"
    )
    parser.add_argument("--lora", metavar="URL", type=typed_url_or_path, help="LoRA to bake, made for that checkpoint")
    parser.add_argument("--images", metavar="DIR", type=typed_path, help="train a LoRA from these pictures, and use it")
    parser.add_argument(
        "--trigger-word", metavar="WORD", default=TRIGGER_WORD, help=f"what --images show (default {TRIGGER_WORD!r})"
    )
    parser.add_argument("--train-steps", metavar="N", type=int, help="steps of that training")
    parser.add_argument("--workflow", metavar="FILE", type=typed_path, help="workflow in API format, run as it is")
    parser.add_argument("--prompt", metavar="TEXT", help="what the picture shows")
    parser.add_argument("--seed", metavar="N", type=int, help="make the same picture again (default: a new number)")
    parser.add_argument("--lora-strength", metavar="X", type=float, help="strength of the LoRA (default 0.8)")
    parser.add_argument("--out", metavar="DIR", type=typed_path, help="folder for the pictures (default outputs/)")
    parser.add_argument("--rebake", action="store_true", help="bake again even if these weights are baked already")
    parser.add_argument("--verbose", action="store_true", help="show the servers' logs")
    given = parser.parse_args(arguments)
    if given.lora and given.images:
        parser.error("--images trains a LoRA to make the picture with; leave --lora out")
    if given.lora and not given.checkpoint:
        parser.error("--lora needs --checkpoint too: a LoRA only fits the kind of checkpoint it was made for")
    values = vars(given)
    if given.out is None:
        values["out"] = PROJECT_ROOT / "outputs"
    if given.seed is None:
        values["seed"] = random.SystemRandom().randint(0, MAX_SEED)
    return Options(**values)


def run(options: Options) -> list[str]:
    """Do all steps and return the paths of the pictures. Raises the errors of comfyui.errors."""
    settings = Settings.from_environ()
    if options.workflow is not None and not options.workflow.is_file():
        raise RequestError(f"--workflow {options.workflow}: there is no such file.")
    steps = Steps(5, verbose=options.verbose)
    with steps.step("ComfyUI, from its pinned source"):
        ensure_upstream(settings, steps.line)
    with ExitStack() as servers:
        with steps.step("Weights to bake"):
            order = _weights_to_bake(options, settings, servers, steps)
        with steps.step("Bake them in Cog's train server"):
            tar = _bake(order, settings, steps, rebake=options.rebake)
    manifest = read_manifest(str(tar), settings)
    workflow = _workflow(options, manifest)
    with ExitStack() as servers:
        with steps.step(f"Restore them in Cog's predict server, on the {'CPU' if runs_on_cpu(settings) else 'GPU'}"):
            server = CogServer("predict", environ=predictor_environ(str(tar), settings), sink=steps.server_line)
            servers.enter_context(server)
            server.wait_ready(Deadline(SETUP_TIMEOUT_S, "The predictor's setup"))
        with steps.step(f"Run the workflow with seed {options.seed}"):
            answer = server.call(
                {
                    "workflow_json": json.dumps(workflow.prompt()),
                    "output_format": "png",
                    "randomise_seeds": False,
                }
            )
            return save_outputs(_output(answer), options.out, "quickstart")


def predictor_environ(weights: str, settings: Settings) -> dict[str, str]:
    """What a predict server on this machine needs in its environment to restore `weights`, a URL or path of a tar."""
    if "MODELS_DIR" in os.environ:
        return {"COG_WEIGHTS": weights}
    # Not models/: what lies there goes into the image at `cog push`.
    return {"COG_WEIGHTS": weights, "MODELS_DIR": str(settings.data_dir / "models")}


def _weights_to_bake(options: Options, settings: Settings, servers: ExitStack, steps: Steps) -> BakeOrder:
    """Find or make the weights; files of this machine get a URL on loopback for as long as `servers` is open."""
    named = {"checkpoints": options.checkpoint, "loras": options.lora}
    if options.checkpoint is None:
        steps.line("tiny demo weights, made here (name your own with --checkpoint and --lora)")
        demo = {"checkpoints": DEMO_CHECKPOINT} | ({} if options.images else {"loras": DEMO_LORA})
        paths = make_demo_weights(settings.data_dir / "demo-models", demo.values())
        named = dict(zip(demo, map(str, paths), strict=True))
    given = {name: value for name, value in named.items() if value}
    for name, value in given.items():
        steps.line(f"{name}: {value}")
    local = {name: Path(value) for name, value in given.items() if Path(value).is_file()}
    urls = servers.enter_context(serve_files({f"{name}/{path.name}": path for name, path in local.items()}))
    lists = {name: urls[f"{name}/{local[name].name}"] if name in local else value for name, value in given.items()}
    seen = [[value, *_state(local[name])] if name in local else [value] for name, value in given.items()]
    # Files of this machine come from loopback, which the policy for URLs of strangers would refuse.
    environ = {"ALLOW_PRIVATE_URLS": "1"} if local else {}
    if options.images is None:
        return BakeOrder(lists, environ, json.dumps(seen))
    training = _training_inputs(options, options.images)
    pictures = [[str(path), *_state(path)] for path in sorted([options.images, *options.images.rglob("*")])]
    return BakeOrder({**lists, **training}, environ, json.dumps([seen, training, pictures]))


def _training_inputs(options: Options, images: Path) -> dict[str, Any]:
    if not images.exists():
        raise RequestError(f"--images {images}: there is no such folder or file.")
    inputs = dict(REAL_TRAINING if options.checkpoint else DEMO_TRAINING)
    if options.train_steps is not None:
        inputs["steps"] = options.train_steps
    return {**inputs, "training_images": str(images), "trigger_word": options.trigger_word}


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is written again: its size in bytes and its time in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _bake(order: BakeOrder, settings: Settings, steps: Steps, *, rebake: bool) -> Path:
    """The path of the tar with these weights, baked now or found from an earlier run."""
    tar = settings.data_dir / "bakes" / hashlib.sha256(order.identity.encode()).hexdigest()[:16] / "weights.tar"
    if tar.is_file() and not rebake:
        steps.line(f"already baked: {tar}")
        return tar
    tar.parent.mkdir(parents=True, exist_ok=True)
    environ = {**order.environ, "WEIGHTS_OUT": str(tar)}
    with CogServer("train", environ=environ, sink=steps.server_line) as server:
        server.wait_ready(Deadline(SETUP_TIMEOUT_S, "The train server's setup"))
        answer = server.call(order.inputs)
        for line in answer.get("logs", "").splitlines():
            steps.line(line)
        _output(answer)
    return tar


def _workflow(options: Options, manifest: Manifest) -> Workflow:
    """The workflow to run: the person's own file, or the example with the baked names in it."""
    names = {folder: Path(name).name for folder, name in (weight.path.split("/", 1) for weight in manifest.weights)}
    if options.workflow is not None:
        workflow = parse_workflow(options.workflow.read_text("utf-8"))
    else:
        example = EXAMPLES / ("txt2img_lora.json" if "loras" in names else "txt2img.json")
        workflow = parse_workflow(example.read_text("utf-8"))
        values = {"ckpt_name": names["checkpoints"]} | ({"lora_name": names["loras"]} if "loras" in names else {})
        workflow = with_values(workflow, values | (REAL_SIZE if options.checkpoint else {}))
    workflow = with_seed(workflow, options.seed)
    prompt = options.trigger_word if options.prompt is None and options.images else options.prompt
    if prompt is not None:
        workflow = with_prompt(workflow, prompt)
    if options.lora_strength is not None:
        strength = options.lora_strength
        workflow = with_values(workflow, {"strength_model": strength, "strength_clip": strength})
    return workflow


def _output(answer: Mapping[str, Any]) -> Any:
    """The output of a prediction or training that succeeded. Raises EngineError with its error if it did not."""
    if answer.get("status") != "succeeded":
        raise EngineError(str(answer.get("error") or answer))
    return answer["output"]


if __name__ == "__main__":
    sys.exit(main())
