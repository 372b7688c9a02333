"""scripts/train-lora: a LoRA from a folder of pictures, on this machine, by the same code that a training call runs.

    pictures, checkpoint ──► comfyui.training ──► my.safetensors, and my-training/ with losses, samples and parameters

Exit codes: 0 done, 1 failed with a reason, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from threading import Event
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from comfyui.engine.engine import new_run_dir
from comfyui.engine.upstream import ensure_upstream
from comfyui.errors import ComfyUIModelError, RequestError
from comfyui.local.paths import typed_path, typed_url_or_path
from comfyui.local.terminal import Console, can_draw
from comfyui.run import Limits
from comfyui.settings import Settings
from comfyui.threads import in_thread, run_until
from comfyui.training.base_model import check_name
from comfyui.training.continued import existing_lora
from comfyui.training.dataset import prepare_dataset, report
from comfyui.training.follow import Patience
from comfyui.training.links import Links, base_of, probe
from comfyui.training.parameters import (
    ALGORITHMS,
    FITS,
    LORA_DTYPES,
    LOSS_FUNCTIONS,
    OPTIMIZERS,
    TRAINING_DTYPES,
    TrainingParameters,
)
from comfyui.training.progress import PlainReport
from comfyui.training.tensors import read_tensors
from comfyui.training.trainer import Base, Existing, TrainedLora, train_lora
from comfyui.weights.disk import part_beside, room_errors
from comfyui.weights.http import HttpOpener
from comfyui.weights.manifest import Weight
from comfyui.weights.sources import Tokens
from comfyui.weights.transfer.pump import TransferStoppedError
from comfyui.weights.transfer.readers import FileReader
from comfyui.weights.verify import Verifier

CHUNK_BYTES = 1024**2
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
    "batch_size": "pictures at once",
    "grad_accumulation_steps": "batches for each step",
    "training_dtype": "what is computed in; none is the checkpoint's own type",
    "resolution": "512 for SD 1.5, 1024 for SDXL",
    "fit": "buckets keeps the pictures' shapes, crop cuts squares",
    "seed": "the same seed, pictures and parameters give the same LoRA",
    "sample_prompt": "prompt of the two sample pictures, in place of the trigger word",
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


class BarReport:
    """Steps as a bar with time left, on a terminal; sentences go above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print it above the bar."""
        tqdm.write(line, file=self._stream)

    def step(self, done: int, total: int, loss: float | None) -> None:
        """Move the bar; at its end it stays."""
        if self._bar is None:
            tqdm.monitor_interval = 0
            self._bar = tqdm(total=total, unit=" step", file=self._stream, dynamic_ncols=True)
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        """Leave the terminal as a person expects it; harmless when there is no bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    try:
        options = parse_arguments(arguments)
        made = asyncio.run(in_thread(lambda stop: train(options, Settings.from_environ(), stop)))
    except ComfyUIModelError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; ComfyUI has ended, and nothing is left of this training.", file=sys.stderr)
        return 130
    for path in made:
        print(path)
    return 0


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


def train(options: Options, settings: Settings, stop: Event) -> list[Path]:
    """Do it all; returns the paths of the LoRA and of the folder beside it. Raises the errors of comfyui.errors, and
    TransferStoppedError once `stop` is set.
    """
    papers = options.out.with_name(f"{options.out.stem}-training")
    for path in (options.out, papers):
        if path.exists() and not options.overwrite:
            raise RequestError(f"{path} is there already; name another --out, or give --overwrite.")
    with Console(as_json=False) as console, closing(_report(sys.stderr)) as shown:
        ensure_upstream(settings, shown.say)
        folder = new_run_dir(settings.data_dir / "runs")
        try:
            work = _Work(options, settings, folder, console, shown, stop)
            _write(work.run(), options.out, papers)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return [options.out, papers]


class _Work:
    """One training in `folder`, which is its own."""

    def __init__(
        self,
        options: Options,
        settings: Settings,
        folder: Path,
        console: Console,
        shown: BarReport | _Lines,
        stop: Event,
    ) -> None:
        self._options = options
        self._settings = replace(settings, models_dir=folder / "models", data_dir=folder)
        self._kept = settings.data_dir / "training-models"
        self._folder = folder
        self._shown = shown
        self._stop = stop
        tokens = Tokens(os.environ.get("HF_TOKEN"), os.environ.get("CIVITAI_TOKEN"))
        self._links = Links(settings, tokens, console.listener)

    def run(self) -> TrainedLora:
        """The pictures first: what is wrong with them is known in seconds."""
        parameters = self._options.parameters
        dataset = prepare_dataset(
            self._options.images,
            self._folder / "dataset",
            resolution=parameters.resolution,
            fit=parameters.fit,
            trigger_word=parameters.trigger_word,
        )
        numbers = {name: getattr(parameters, name) for name in ("batch_size", "grad_accumulation_steps", "steps")}
        for line in (*report(dataset, **numbers), "The LoRA is trained with", *parameters.lines()):
            self._shown.say(line)
        checkpoint = self._file(self._options.checkpoint, "checkpoints")
        base = self._base(checkpoint)
        existing = None
        if self._options.existing_lora is not None:
            existing = self._existing(self._file(self._options.existing_lora, "loras"), base)
        training = train_lora(
            dataset,
            base,
            parameters,
            self._settings,
            Patience.of(self._options.limits),
            self._shown,
            existing,
            self._shown.say if self._options.verbose else lambda _line: None,
        )
        return run_until(self._stop, training)

    def _file(self, named: str, folder: str) -> Path:
        """A file of this machine as it is; a link is fetched into a folder that is kept for the next time."""
        if "://" not in named and Path(named).is_file():
            return Path(named)
        with HttpOpener(self._settings) as opener:
            remote = self._links.ask(named, folder, opener)
            path = f"{folder}/{remote.name}"
            if folder == "checkpoints":
                check_name(path)
                probe(remote, path, opener)
            kept = self._kept / path
            if kept.is_file() and kept.stat().st_size == remote.size:
                self._shown.say(f"{path} is here already: {kept}")
                return kept
            self._links.fetch(remote, folder, named, self._kept, opener, self._stop)
            return kept

    def _base(self, checkpoint: Path) -> Base:
        check_name(checkpoint.name)
        path = f"checkpoints/{checkpoint.name}"
        self._shown.say(f"Hashing {checkpoint}")
        with closing(FileReader(checkpoint)) as reader:
            # What it is comes first: a hash of gigabytes is only worth while for what can be trained on.
            model = base_of(reader, Weight(path, None, checkpoint.stat().st_size, ""))
        verifier = Verifier(path, allow_pickle=False)
        with checkpoint.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                if self._stop.is_set():
                    raise TransferStoppedError("The training was stopped.")
                verifier.feed(chunk)
        link = self._settings.models_dir / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(checkpoint)
        return replace(model, sha256=verifier.finish().sha256)

    def _existing(self, file: Path, base: Base) -> Existing:
        data = file.read_bytes()
        verifier = Verifier(f"loras/{file.name}", allow_pickle=False)
        verifier.feed(data)
        digest = verifier.finish()
        tensors, metadata = read_tensors(data, file.name)
        return Existing(existing_lora(tensors, metadata, base.model, file.name), digest.sha256)


class _Lines(PlainReport):
    """A report that has nothing to close."""

    def close(self) -> None:
        """Nothing to do."""


def _report(stream: TextIO) -> BarReport | _Lines:
    if can_draw(stream):
        return BarReport(stream)
    return _Lines(lambda line: print(line, file=stream, flush=True))


def _write(trained: TrainedLora, out: Path, papers: Path) -> None:
    """The LoRA, whole or not at all, and what belongs to it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    papers.mkdir(exist_ok=True)
    part = part_beside(out)
    with room_errors(out.parent, out.name, f"{len(trained.data)} bytes"):
        try:
            part.write_bytes(trained.data)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
        for name, data in trained.papers.items():
            (papers / name).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
