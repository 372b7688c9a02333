"""Train one LoRA in a ComfyUI of its own: from a dataset and a checkpoint to a file that is proven to work.

    dataset ──► graph ──► TrainLoraNode ──► LoRA + metadata ──► LoraLoader, twice the same picture ──► TrainedLora

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
from comfyui.errors import EngineError, TrainingInputError
from comfyui.settings import Settings
from comfyui.training.base_model import BaseModel
from comfyui.training.continued import ExistingLora, layers_name, with_offsets
from comfyui.training.dataset import Dataset
from comfyui.training.follow import Patience, run_graph
from comfyui.training.graph import LORA_PREFIX, LOSSES, Continued, training_graph
from comfyui.training.losses import Losses
from comfyui.training.metadata import Provenance, lora_metadata
from comfyui.training.parameters import TrainingParameters
from comfyui.training.progress import Report, TrainingProgress
from comfyui.training.proof import Samples, prove
from comfyui.training.tensors import Tensor, read_tensors, safetensors_bytes
from comfyui.weights.disk import room_errors

Result = TypeVar("Result")
OFFSETS_NAME = "continued_offsets.safetensors"


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
    """A LoRA, whole as a file (`data`), and what belongs to it, by file name: losses, samples, parameters."""

    data: bytes
    papers: Mapping[str, bytes]
    final_loss: float


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

    Raises TrainingInputError when the numbers explode, ExecutionError when a node fails, DeadlineError, EngineError
    when ComfyUI does, or when the LoRA turns out not to work.
    """
    continued = await asyncio.to_thread(_hand_over, existing, settings.models_dir / "loras") if existing else None
    prompt = training_graph(dataset.images, parameters, base.name, continued)
    engine = Engine(settings, sink=lambda line: log(engine_log_line(line)))
    try:
        report.say("Starting ComfyUI")
        await engine.ready()
        await asyncio.to_thread(_place_images, dataset, engine.folders.input)
        following = run_graph(engine, prompt, patience, TrainingProgress(prompt, report).observe)
        entry = await _or_end(engine, following)
        losses = Losses.of_output(entry.outputs.get(LOSSES, {}))
        _check(losses, parameters)
        tensors = await asyncio.to_thread(_saved_tensors, engine.folders.output)
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
        if existing:
            tensors = with_offsets(tensors, existing.lora.offsets)
        data = _file_of(tensors, dataset, parameters, provenance)
        await asyncio.to_thread(_write, settings.models_dir / "loras" / parameters.file_name, data)
        words = parameters.sample_prompt or parameters.trigger_word or dataset.images[0].caption
        proof = prove(engine, base.name, parameters.file_name, words, parameters, patience, report)
        samples = await _or_end(engine, proof)
    finally:
        await engine.stop()
    report.say(f"Loss at the end: {losses.final:.4g}, the mean of the last tenth of {len(losses.values)} passes")
    return TrainedLora(data, _papers(losses, samples, words, parameters, provenance), losses.final)


async def _or_end(engine: Engine, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`. A cancel ends ComfyUI at once: to be asked to let go, it would have to finish its step."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await engine.stop()
        task.cancel()
        await asyncio.wait({task})
        raise


def _hand_over(existing: Existing, folder: Path) -> Continued:
    """Put the LoRA to go on from into ComfyUI's loras folder, in the two parts that the graph takes."""
    lora = existing.lora
    layers = layers_name(lora.steps)
    _write(folder / layers, b"".join(safetensors_bytes(lora.layers, {})))
    if lora.offsets:
        _write(folder / OFFSETS_NAME, b"".join(safetensors_bytes(lora.offsets, {})))
    return Continued(layers, OFFSETS_NAME if lora.offsets else None)


def _place_images(dataset: Dataset, folder: Path) -> None:
    for image in dataset.images:
        with room_errors(folder, image.path.name, "more bytes"):
            shutil.copyfile(image.path, folder / image.path.name)


def _check(losses: Losses, parameters: TrainingParameters) -> None:
    broken = losses.broken_at()
    if broken is not None:
        raise TrainingInputError(
            f"The training broke: from pass {broken} of {parameters.passes} on, its loss is not a number. Give a "
            f"smaller learning_rate than {parameters.learning_rate:g}, or training_dtype bf16 or fp32.",
            input_name="learning_rate",
        )


def _saved_tensors(output: Path) -> dict[str, Tensor]:
    """The file that SaveLoRA wrote. It names it itself, and reports nothing."""
    prefix = Path(LORA_PREFIX)
    found = sorted((output / prefix.parent).glob(f"{prefix.name}_*.safetensors"))
    if len(found) != 1:
        raise EngineError(f"ComfyUI's SaveLoRA should have written one file, and wrote {len(found)}.")
    tensors, _ = read_tensors(found[0].read_bytes(), found[0].name)
    return tensors


def _file_of(
    tensors: Mapping[str, Tensor], dataset: Dataset, parameters: TrainingParameters, provenance: Provenance
) -> bytes:
    # The data does not depend on the metadata, which holds its hash.
    _, body = safetensors_bytes(tensors, {})
    head, _ = safetensors_bytes(tensors, lora_metadata(parameters, provenance, dataset.images, tensors, body))
    return head + body


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with room_errors(path.parent, path.name, f"{len(data)} bytes"):
        path.write_bytes(data)


def _papers(
    losses: Losses, samples: Samples, words: str, parameters: TrainingParameters, provenance: Provenance
) -> dict[str, bytes]:
    facts = {
        **provenance.as_dict(parameters),
        "sample_prompt": words,
        "sample_difference": round(samples.difference, 4),
        "passes": len(losses.values),
    }
    return {
        "parameters.json": (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode(),
        "loss.csv": losses.table(parameters.grad_accumulation_steps),
        "loss.png": losses.picture(),
        "sample_without_lora.png": samples.without,
        "sample_with_lora.png": samples.with_lora,
    }
