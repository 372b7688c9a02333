"""A LoRA that does not work is refused; what else goes wrong at its proof, in real ComfyUI, takes it from nobody."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfyui.deadline import Deadline
from comfyui.engine.client import HistoryEntry
from comfyui.engine.engine import Engine
from comfyui.engine.events import Event, Executing
from comfyui.engine.follow import LogLine, Observer
from comfyui.errors import TrainingInputError
from comfyui.settings import Settings
from comfyui.training import proof
from comfyui.training.dataset import Dataset, prepare_dataset
from comfyui.training.follow import Patience, run_graph
from comfyui.training.graph import Prompt
from comfyui.training.links import base_of
from comfyui.training.parameters import TrainingParameters
from comfyui.training.progress import PlainReport
from comfyui.training.tensors import read_tensors, safetensors_bytes
from comfyui.training.trainer import Base, TrainedLora, paper_names, train_lora
from comfyui.weights.manifest import Weight
from comfyui.weights.transfer.readers import FileReader
from tests.parts import SD15, demo_files
from tests.training.subject import SIDE, TRIGGER_WORD, subject_zip

CALL_S = 240.0
CHECKPOINT = "checkpoints/tiny-sd15.safetensors"
PARAMETERS = TrainingParameters(steps=4, resolution=SIDE, trigger_word=TRIGGER_WORD, lora_name=TRIGGER_WORD)
SAMPLES = {"sample_without_lora.png", "sample_with_lora.png"}


class Training:
    """One training, which ends its ComfyUI at work on a proof, `kills` times; `before_proof` is called before each."""

    def __init__(self, settings: Settings, dataset: Dataset, base: Base) -> None:
        self.settings = settings
        self.said: list[str] = []
        self.kills = 0
        self.before_proof: Callable[[], object] = lambda: None
        self._dataset = dataset
        self._base = base

    async def run(self, parameters: TrainingParameters = PARAMETERS) -> TrainedLora:
        patience = Patience(Deadline(CALL_S, "The training"), CALL_S)
        return await train_lora(
            self._dataset, self._base, parameters, self.settings, patience, PlainReport(self.said.append)
        )

    async def run_proof(self, engine: Engine, prompt: Prompt, patience: Patience, observe: Observer) -> HistoryEntry:
        """In place of proof.run_graph: the same, and a kill as soon as a node of the graph is at work."""

        to_be_killed = self.kills > 0

        def seen(item: Event | LogLine) -> None:
            nonlocal to_be_killed
            if isinstance(item, Executing) and to_be_killed:
                # Once: an event that was under way already comes after the kill.
                to_be_killed = False
                self.kills -= 1
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGKILL)
            observe(item)

        self.before_proof()
        return await run_graph(engine, prompt, patience, seen)


@pytest.fixture
def training(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    """Ready to train on the tiny checkpoint."""
    settings = make_settings()
    file = demo_files(*SD15)[CHECKPOINT]
    (settings.models_dir / "checkpoints").mkdir(parents=True)
    (settings.models_dir / CHECKPOINT).symlink_to(file)
    with closing(FileReader(file)) as reader:
        base = base_of(reader, Weight(CHECKPOINT, None, file.stat().st_size, "0" * 64))
    pictures = subject_zip(tmp_path / "pictures.zip")
    dataset = prepare_dataset(pictures, tmp_path / "dataset", resolution=SIDE, trigger_word=TRIGGER_WORD)
    training = Training(settings, dataset, base)
    monkeypatch.setattr(proof, "run_graph", training.run_proof)
    return training


async def test_a_comfyui_that_dies_at_the_proof_costs_nothing_but_time(training: Training) -> None:
    training.kills = 1
    lora = await training.run()
    assert any("is begun again in a new ComfyUI" in line and "signal 9" in line for line in training.said)
    assert lora.facts["unproven"] is None
    assert lora.facts["sample_difference"] > 0
    assert set(lora.papers) == set(paper_names(PARAMETERS))


async def test_a_lora_that_cannot_be_proven_is_kept_and_says_so(training: Training) -> None:
    training.kills = 2
    lora = await training.run()
    (warning,) = [line for line in training.said if line.startswith("WARNING: ")]
    assert "nothing proves that it works: ComfyUI ended" in warning
    assert "signal 9" in lora.facts["unproven"]
    assert lora.facts["sample_difference"] is None
    assert set(lora.papers) == set(paper_names(PARAMETERS)) - SAMPLES
    tensors, metadata = read_tensors(lora.data, "the LoRA")
    assert tensors
    assert metadata["ss_steps"] == str(PARAMETERS.steps)


async def test_a_sample_on_the_way_that_fails_does_not_end_the_training(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture's LoraLoader gets a file that is cut short; ComfyUI fails at it as it would for lack of memory."""
    loras = training.settings.models_dir / "loras"
    loras.mkdir()
    (loras / "cut.safetensors").write_bytes(b"\xff\0\0\0\0\0\0\0{")
    real = proof.sample_graph

    def graph(checkpoint: str, lora: str, *others: Any, without: bool = True) -> Any:
        return real(checkpoint, lora if without else "cut.safetensors", *others, without=without)

    monkeypatch.setattr(proof, "sample_graph", graph)
    parameters = replace(PARAMETERS, sample_every=2)
    lora = await training.run(parameters)
    assert any(line.startswith("No sample after step 2, and the training goes on: Node") for line in training.said)
    assert lora.facts["unproven"] is None
    assert lora.facts["passes"] == 4
    assert set(lora.papers) == set(paper_names(parameters)) - {"sample_step_000002.png"}


async def test_a_comfyui_that_dies_at_a_sample_on_the_way_does_not_end_the_training(training: Training) -> None:
    training.kills = 1
    parameters = replace(PARAMETERS, sample_every=2)
    lora = await training.run(parameters)
    (line,) = [line for line in training.said if line.startswith("No sample after step 2, and the training goes on")]
    assert "signal 9" in line
    assert lora.facts["unproven"] is None
    assert lora.facts["passes"] == 4
    assert set(lora.papers) == set(paper_names(parameters)) - {"sample_step_000002.png"}


async def test_a_lora_that_changes_nothing_is_refused(training: Training) -> None:
    parameters = replace(PARAMETERS, steps=1, learning_rate=0.0000001)
    with pytest.raises(TrainingInputError, match=r"LoRA changes nothing: .* a larger learning_rate") as error:
        await training.run(parameters)
    assert error.value.input_name == "steps"
    assert not any("begun again" in line for line in training.said)


async def test_a_lora_whose_keys_find_no_layer_is_refused(training: Training) -> None:
    """One key gets a name that ComfyUI knows no layer by, as if it had trained what it cannot load."""
    lora = training.settings.models_dir / "loras" / PARAMETERS.file_name

    def rename() -> None:
        tensors, metadata = read_tensors(lora.read_bytes(), lora.name)
        (old, *_) = (key for key in tensors if key.endswith(".lora_up.weight"))
        renamed = {key.replace(old.removesuffix("lora_up.weight"), "nowhere."): value for key, value in tensors.items()}
        lora.write_bytes(b"".join(safetensors_bytes(renamed, metadata)))

    training.before_proof = rename
    with pytest.raises(TrainingInputError, match=r"does not fit its own checkpoint: \d+ of its keys .* nowhere\."):
        await training.run()
