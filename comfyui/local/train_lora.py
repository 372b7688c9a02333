"""scripts/train-lora: a LoRA from a folder of pictures, on this machine, by the same code that a training call runs.

    pictures, checkpoint ──► comfyui.training ──► my.safetensors, and my-training/ with losses, samples and parameters

Exit codes: 0 done, 1 failed with a reason, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from comfyui.engine.upstream import ensure_upstream
from comfyui.errors import ComfyUIModelError, RequestError
from comfyui.local.terminal import Console, can_draw
from comfyui.local.train_lora_arguments import Options, parse_arguments
from comfyui.scratch import new_run_dir, remove_run_dir
from comfyui.settings import Settings
from comfyui.threads import in_thread, run_until
from comfyui.training.base_model import check_name
from comfyui.training.continued import check_size, existing_lora
from comfyui.training.dataset import prepare_dataset, report
from comfyui.training.follow import Patience
from comfyui.training.links import Links, base_of, probe
from comfyui.training.progress import PlainReport
from comfyui.training.tensors import read_tensors
from comfyui.training.trainer import Base, Existing, TrainedLora, train_lora
from comfyui.weights.bring.present import digest_of
from comfyui.weights.disk import room_errors, write_whole
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.formats import GGUF_EXTENSIONS, PICKLE_EXTENSIONS, SAFETENSORS_EXTENSIONS
from comfyui.weights.judge.verify import Verifier
from comfyui.weights.manifest import Weight
from comfyui.weights.sources import RemoteFile, Tokens
from comfyui.weights.transfer.readers import FileReader

WEIGHT_FILES = (*SAFETENSORS_EXTENSIONS, *GGUF_EXTENSIONS, *PICKLE_EXTENSIONS)


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
    except (ComfyUIModelError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; ComfyUI has ended, and nothing is left of this training.", file=sys.stderr)
        return 130
    for path in made:
        print(path)
    return 0


def train(options: Options, settings: Settings, stop: Event) -> list[Path]:
    """Do it all; returns the paths of the LoRA and of the folder beside it. Raises the errors of comfyui.errors, and
    StoppedError once `stop` is set.
    """
    papers = options.out.with_name(f"{options.out.stem}-training")
    for path in (options.out, papers):
        if path.exists() and not options.overwrite:
            raise RequestError(f"{path} is there already; name another --out, or give --overwrite.")
    _require_place(options.out, papers)
    for named in filter(None, (options.checkpoint, options.existing_lora)):
        _require_file(named)
    with Console(as_json=False) as console, closing(_report(sys.stderr)) as shown:
        ensure_upstream(settings, shown.say)
        folder = new_run_dir(settings.data_dir / "runs")
        try:
            work = _Work(options, settings, folder, console, shown, stop)
            _write(work.run(), options.out, papers)
        finally:
            remove_run_dir(folder)
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
            stop=self._stop,
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
        if Path(named).is_absolute():
            return Path(named)
        with HttpOpener(self._settings) as opener:
            remote = self._links.ask(named, folder, opener)
            path = f"{folder}/{remote.name}"
            if folder == "checkpoints":
                check_name(path)
                probe(remote, path, opener)
            models = self._kept / identity(remote)
            if (models / path).is_file():
                self._shown.say(f"{path} is here already: {models / path}")
            else:
                self._links.fetch(remote, folder, named, models, opener, self._stop)
            return models / path

    def _base(self, checkpoint: Path) -> Base:
        check_name(checkpoint.name)
        path = f"checkpoints/{checkpoint.name}"
        self._shown.say(f"Hashing {checkpoint}")
        with closing(FileReader(checkpoint)) as reader:
            # What it is comes first: a hash of gigabytes is only worth while for what can be trained on.
            model = base_of(reader, Weight(path, None, checkpoint.stat().st_size, ""))
        digest = digest_of(path, checkpoint, self._stop, allow_pickle=False)
        link = self._settings.models_dir / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(checkpoint)
        return replace(model, sha256=digest.sha256)

    def _existing(self, file: Path, base: Base) -> Existing:
        check_size(file.stat().st_size, file.name)
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


def identity(remote: RemoteFile) -> str:
    """A name for the content of a link: many checkpoints have the same file name and the same size."""
    known = [remote.sha256] if remote.sha256 else [remote.manifest_url, remote.name, remote.size, remote.validator]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def _require_file(named: str) -> None:
    """Raise RequestError for the path of a file that is not there: that is to be known before work is done."""
    is_path = Path(named).is_absolute() or ("://" not in named and named.lower().endswith(WEIGHT_FILES))
    if is_path and not Path(named).is_file():
        raise RequestError(f"{named}: there is no such file; give a file of this machine, or a link.")


def _require_place(out: Path, papers: Path) -> None:
    """Raise RequestError where the results could not be written: that is to be known before hours are spent."""
    if out.is_dir() or (papers.exists() and not papers.is_dir()):
        raise RequestError(f"{out if out.is_dir() else papers} is in the way; name another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise RequestError(f"{out} cannot be written: {error.strerror}. Name another --out.") from error


def _write(trained: TrainedLora, out: Path, papers: Path) -> None:
    """The LoRA, whole or not at all, and what belongs to it."""
    papers.mkdir(exist_ok=True)
    with room_errors(out.parent, out.name, f"{len(trained.data)} bytes"):
        write_whole(out, trained.data)
        for old in papers.glob("sample_*.png"):
            # One of a LoRA that was here before would pass for this one's.
            old.unlink()
        for name, data in trained.papers.items():
            (papers / name).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
