"""Train one LoRA in a ComfyUI of its own: from a dataset and a checkpoint to a file that is proven to work.

    dataset ──► stages ──► LoRA + metadata ──► LoraLoader, twice the same picture ──► TrainedLora

Each training starts a ComfyUI and ends it: nothing is left in memory of models or of random numbers, and a cancel ends
the process, which lets go at once whatever it is doing.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from comfyui.engine.engine import Engine
from comfyui.engine.server import engine_log_line
from comfyui.engine.upstream import upstream_version
from comfyui.errors import DeadlineError, EngineError, ExecutionError
from comfyui.settings import Settings
from comfyui.training.base_model import BaseModel
from comfyui.training.continued import ExistingLora
from comfyui.training.dataset import Dataset
from comfyui.training.follow import Patience
from comfyui.training.losses import Losses
from comfyui.training.metadata import Provenance, lora_metadata
from comfyui.training.parameters import TrainingParameters
from comfyui.training.progress import Report
from comfyui.training.proof import Samples, prove
from comfyui.training.stages import StagedTraining, sample_names, write_file
from comfyui.training.tensors import Tensor, safetensors_bytes
from comfyui.weights.disk import room_errors

Result = TypeVar("Result")
UNPROVEN_CHARS = 500
"""Of why a LoRA is not proven, in its record; the log has all of it."""


@dataclass(frozen=True)
class Base:
    """The checkpoint to train on: `name` in the checkpoints folder of the settings' models folder, what it is, its
    SHA-256, and the old short hash of it (ss_sd_model_hash).
    """

    name: str
    model: BaseModel
    sha256: str
    old_hash: str


@dataclass(frozen=True)
class Existing:
    """A LoRA to go on from, and its SHA-256."""

    lora: ExistingLora
    sha256: str


@dataclass(frozen=True)
class TrainedLora:
    """A LoRA, whole as a file (`data`); what belongs to it, by file name: losses, samples, parameters; and the facts of
    it, which are in its parameters.json, too. `unproven` among them is None, or why its proof came to no end.
    """

    data: bytes
    papers: Mapping[str, bytes]
    facts: Mapping[str, Any]


async def train_lora(
    dataset: Dataset,
    base: Base,
    parameters: TrainingParameters,
    settings: Settings,
    patience: Patience,
    report: Report,
    existing: Existing | None = None,
    log: Callable[[str], None] = lambda _line: None,
) -> TrainedLora:
    """Train, prove and describe the LoRA. `settings.models_dir` holds the checkpoint, and may be written to.

    `log` gets, from a thread, what ComfyUI prints while it starts and ends.

    Raises TrainingInputError when the numbers explode, or the LoRA turns out not to work, ExecutionError when a node
    fails, DeadlineError, EngineError when ComfyUI does. What goes wrong with its proof alone takes no LoRA away
    that hours were paid for: then it comes without samples, and `unproven`.
    """
    words = parameters.sample_prompt or parameters.trigger_word or dataset.images[0].caption
    loras = settings.models_dir / "loras"
    engine = Engine(settings, sink=lambda line: log(engine_log_line(line)))
    try:
        report.say("Starting ComfyUI")
        await engine.ready()
        await asyncio.to_thread(_place_images, dataset, engine.folders.input)
        training = StagedTraining(
            engine, dataset.images, base.name, base.model, parameters, words, loras, patience, report
        )
        learnt = await _or_end(engine, training.run(existing.lora if existing else None))
        losses = learnt.losses
        provenance = Provenance(
            checkpoint=base.name,
            checkpoint_sha256=base.sha256,
            old_hash=base.old_hash,
            kind=base.model.kind,
            dataset_sha256=dataset.sha256,
            comfyui_version=upstream_version(settings.upstream_dir),
            final_loss=losses.final,
            existing_sha256=existing.sha256 if existing else None,
            previous_steps=existing.lora.steps if existing else 0,
        )
        data = _file_of(learnt.tensors, dataset, parameters, provenance)
        await asyncio.to_thread(write_file, loras / parameters.file_name, data)

        def proof() -> Coroutine[Any, Any, Samples]:
            return prove(engine, base.name, parameters.file_name, words, parameters, patience, report)

        samples, unproven = await _proven(engine, proof, report)
    finally:
        await engine.stop()
    report.say(f"Loss at the end: {losses.final:.4g}, the mean of the last tenth of {len(losses.values)} passes")
    facts = {
        **provenance.as_dict(parameters),
        "sample_prompt": words,
        "sample_difference": round(samples.difference, 4) if samples else None,
        "unproven": unproven,
        "passes": len(losses.values),
    }
    return TrainedLora(data, {**_papers(losses, samples, facts, parameters), **learnt.samples}, facts)


def paper_names(parameters: TrainingParameters) -> list[str]:
    """The file names of what belongs to a LoRA; samples that could not be made are left out."""
    ours = ["parameters.json", "loss.csv", "loss.png", "sample_without_lora.png", "sample_with_lora.png"]
    return [*ours, *sample_names(parameters)]


async def _proven(
    engine: Engine, proof: Callable[[], Coroutine[Any, Any, Samples]], report: Report
) -> tuple[Samples | None, str | None]:
    """The samples, or why there are none: ComfyUI failed twice, or time is up. Raises as `prove` for a LoRA that does
    not work.
    """
    first = True
    while True:
        try:
            return await _or_end(engine, proof()), None
        except (ExecutionError, EngineError, DeadlineError) as error:
            if not first or isinstance(error, DeadlineError):
                report.say(f"WARNING: the LoRA is whole, and is kept, but nothing proves that it works: {error}")
                return None, str(error)[:UNPROVEN_CHARS]
            report.say(f"The proof came to no end, and is begun again in a new ComfyUI: {error}")
        first = False
        await engine.end("the proof of the LoRA came to no end in it")


async def _or_end(engine: Engine, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`. A cancel ends ComfyUI at once: to be asked to let go, it would have to finish its step."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await engine.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise


def _place_images(dataset: Dataset, folder: Path) -> None:
    for image in dataset.images:
        with room_errors(folder, image.path.name, "more bytes"):
            shutil.copyfile(image.path, folder / image.path.name)


def _file_of(
    tensors: Mapping[str, Tensor], dataset: Dataset, parameters: TrainingParameters, provenance: Provenance
) -> bytes:
    # The data does not depend on the metadata, which holds its hash.
    _, body = safetensors_bytes(tensors, {})
    head, _ = safetensors_bytes(tensors, lora_metadata(parameters, provenance, dataset.images, tensors, body))
    return head + body


def _papers(
    losses: Losses, samples: Samples | None, facts: Mapping[str, Any], parameters: TrainingParameters
) -> dict[str, bytes]:
    papers = {
        "parameters.json": (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode(),
        "loss.csv": losses.table(parameters.grad_accumulation_steps),
        "loss.png": losses.picture(),
    }
    if samples is not None:
        papers |= {"sample_without_lora.png": samples.without, "sample_with_lora.png": samples.with_lora}
    return papers
