"""The training itself, in stages where samples are wanted in between: each goes on from the LoRA of the one before.

TrainLoraNode can neither stop in between nor keep its optimizer's state. So every stage begins its optimizer anew, and
a training with samples is not the same, step for step, as one without. The noise is: its seed goes on, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from comfyui.engine.engine import Engine
from comfyui.errors import DeadlineError, EngineError, ExecutionError, TrainingInputError
from comfyui.training.base_model import BaseModel
from comfyui.training.continued import STEPS_KEY, ExistingLora, existing_lora, layers_name, offsets_name, with_offsets
from comfyui.training.dataset import TrainingImage
from comfyui.training.follow import Patience, run_graph
from comfyui.training.graph import LORA_PREFIX, LOSSES, Continued, training_graph
from comfyui.training.losses import Losses, broken
from comfyui.training.parameters import SEED_STRIDE, TrainingParameters
from comfyui.training.progress import Report, TrainingProgress
from comfyui.training.proof import sample
from comfyui.training.tensors import Tensor, read_tensors, safetensors_bytes
from comfyui.weights.disk import room_errors


@dataclass(frozen=True)
class Stage:
    """Steps `begin` to `end` of a training. `parameters` are those of the whole, but for steps and seed."""

    begin: int
    end: int
    parameters: TrainingParameters


@dataclass(frozen=True)
class Learnt:
    """What a training came to: the LoRA's tensors, every loss, and the samples on the way by their file names."""

    tensors: Mapping[str, Tensor]
    losses: Losses
    samples: Mapping[str, bytes]


def stages(parameters: TrainingParameters) -> list[Stage]:
    """The stages of a training, in order: one, unless samples are wanted every so many steps."""
    size = parameters.sample_every or parameters.steps
    ends = [*range(size, parameters.steps, size), parameters.steps]
    return [Stage(begin, end, _part(parameters, begin, end)) for begin, end in zip([0, *ends], ends, strict=False)]


def sample_names(parameters: TrainingParameters) -> list[str]:
    """The file names of the samples between stages, if all go well; the last stage ends with the proof."""
    return [_sample_name(stage.end) for stage in stages(parameters)[:-1]]


class StagedTraining:
    """One training in a running ComfyUI, in whose input folder the images lie. `checkpoint` is a name in ComfyUI,
    `loras` its folder of LoRAs, `words` the prompt of the samples.
    """

    def __init__(
        self,
        engine: Engine,
        images: Sequence[TrainingImage],
        checkpoint: str,
        model: BaseModel,
        parameters: TrainingParameters,
        words: str,
        loras: Path,
        patience: Patience,
        report: Report,
    ) -> None:
        self._engine = engine
        self._images = images
        self._checkpoint = checkpoint
        self._model = model
        self._parameters = parameters
        self._words = words
        self._loras = loras
        self._patience = patience
        self._report = report
        self._losses = Losses(())

    async def run(self, existing: ExistingLora | None) -> Learnt:
        """Train, from `existing` on if there is one. Raises as `train_lora` does."""
        before = existing.steps if existing else 0
        tensors: Mapping[str, Tensor] = {}
        samples: dict[str, bytes] = {}
        for stage in stages(self._parameters):
            tensors = await self._train(stage, existing)
            if stage.end < self._parameters.steps:
                self._report.say(f"A sample after step {stage.end}")
                try:
                    samples[_sample_name(stage.end)] = await self._sample(stage.end, tensors)
                except (ExecutionError, EngineError, DeadlineError) as error:
                    # A picture may take more memory than a step. It is an extra; the training is what is paid for, and
                    # goes on in a new ComfyUI if need be.
                    self._patience.deadline.check()
                    self._report.say(f"No sample after step {stage.end}, and the training goes on: {error}")
                metadata = {STEPS_KEY: str(before + stage.end)}
                existing = existing_lora(tensors, metadata, self._model, "the LoRA so far")
        return Learnt(tensors, self._losses, samples)

    async def _train(self, stage: Stage, existing: ExistingLora | None) -> Mapping[str, Tensor]:
        continued = await asyncio.to_thread(_hand_over, existing, self._loras) if existing else None
        prompt = training_graph(self._images, stage.parameters, self._checkpoint, continued)
        progress = TrainingProgress(prompt, self._parameters, self._report, len(self._losses.values))
        entry = await run_graph(self._engine, prompt, self._patience, progress.observe)
        self._losses = self._losses.then(Losses.of_output(entry.outputs.get(LOSSES, {})))
        if (at := self._losses.broken_at()) is not None:
            raise broken(at, self._parameters)
        tensors = await asyncio.to_thread(_take_tensors, self._engine.folders.output)
        _check_numbers(tensors, self._parameters)
        if continued is not None:
            for name in filter(None, (continued.layers, continued.offsets)):
                (self._loras / name).unlink()
        return with_offsets(tensors, existing.offsets) if existing else tensors

    async def _sample(self, step: int, tensors: Mapping[str, Tensor]) -> bytes:
        # A name of its own: ComfyUI takes a file for the one that it has loaded as long as the name is the same.
        lora = self._loras / f"sample_{step}.safetensors"
        await asyncio.to_thread(write_file, lora, b"".join(safetensors_bytes(tensors, {})))
        try:
            return await sample(
                self._engine, self._checkpoint, lora.name, self._words, self._parameters, self._patience
            )
        finally:
            lora.unlink()


def write_file(path: Path, data: bytes) -> None:
    """Write a file of a training, and the folder that it lies in. Raises StorageError on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with room_errors(path.parent, path.name, f"{len(data)} bytes"):
        path.write_bytes(data)


def _part(parameters: TrainingParameters, begin: int, end: int) -> TrainingParameters:
    seed = parameters.seed + SEED_STRIDE * begin * parameters.grad_accumulation_steps
    return replace(parameters, steps=end - begin, seed=seed)


def _sample_name(step: int) -> str:
    """Names that sort as the steps do."""
    return f"sample_step_{step:06d}.png"


def _hand_over(lora: ExistingLora, folder: Path) -> Continued:
    """Put the LoRA to go on from into ComfyUI's loras folder, in the two parts that the graph takes."""
    names = Continued(layers_name(lora.steps), offsets_name(lora.steps) if lora.offsets else None)
    write_file(folder / names.layers, b"".join(safetensors_bytes(lora.layers, {})))
    if names.offsets is not None:
        write_file(folder / names.offsets, b"".join(safetensors_bytes(lora.offsets, {})))
    return names


def _check_numbers(tensors: Mapping[str, Tensor], parameters: TrainingParameters) -> None:
    """The last step may break what the last loss was still good for; a picture of noise would pass for a change."""
    if not all(np.isfinite(tensor.numbers()).all() for tensor in tensors.values()):
        raise TrainingInputError(
            "The training broke: the LoRA holds values that are not numbers. Give a smaller learning_rate than "
            f"{parameters.learning_rate:g}, or training_dtype bf16 or fp32.",
            input_name="learning_rate",
        )


def _take_tensors(output: Path) -> dict[str, Tensor]:
    """What is in the file that SaveLoRA wrote, which is gone then. The node names it itself, and reports nothing."""
    prefix = Path(LORA_PREFIX)
    found = sorted((output / prefix.parent).glob(f"{prefix.name}_*.safetensors"))
    if len(found) != 1:
        raise EngineError(f"ComfyUI's SaveLoRA should have written one file, and wrote {len(found)}.")
    tensors, _ = read_tensors(found[0].read_bytes(), found[0].name)
    found[0].unlink()
    return tensors
