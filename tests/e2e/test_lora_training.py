"""A LoRA trained from pictures, through Cog's real train server and real ComfyUI, on the tiny checkpoint."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from comfyui.deadline import Deadline
from comfyui.engine.engine import Engine
from comfyui.local.cog_server import CogServer
from comfyui.local.file_server import serve_files
from comfyui.settings import Settings
from comfyui.training.dataset import prepare_dataset
from comfyui.training.follow import Patience, run_graph
from comfyui.training.graph import LOSSES, training_graph
from comfyui.training.losses import Losses
from comfyui.training.parameters import TrainingParameters
from comfyui.training.tensors import read_tensors
from comfyui.weights.listener import PlainLines
from comfyui.weights.manifest import Manifest
from comfyui.weights.restore import restore
from tests.e2e.conftest import READY_S, Served
from tests.parts import SD15, demo_files
from tests.training.subject import SIDE, TRIGGER_WORD, subject_zip

CHECKPOINT = "checkpoints/tiny-sd15.safetensors"
STEPS = 24
CALL_S = 240.0
MEASURED = 6
"""Passes of the fixed noise that the loss is measured with."""


@dataclass
class Trained:
    """A training's answer, and the tar it made."""

    answer: dict[str, Any]
    tar: Path
    inputs: dict[str, Any]

    def member(self, name: str) -> bytes:
        with tarfile.open(self.tar) as tar:
            stream = tar.extractfile(name)
            assert stream is not None
            return stream.read()

    def lora(self) -> bytes:
        return self.member(f"loras/{TRIGGER_WORD}.safetensors")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Cog's train server. One thread for ComfyUI: several that spin for each other crawl on a busy machine."""
    folder = tmp_path_factory.mktemp("trainer")
    lines: list[str] = []
    environ = {
        "ALLOW_PRIVATE_URLS": "1",
        "WEIGHTS_OUT": str(folder / "weights.tar"),
        "DATA_DIR": str(folder / "data"),
        "OMP_NUM_THREADS": "1",
    }
    with CogServer("train", environ=environ, sink=lines.append) as server:
        server.wait_ready(Deadline(READY_S, "The train server's setup"))
        yield Served(server, lines)


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    with serve_files(demo_files(*SD15)) as served:
        yield served


@pytest.fixture(scope="module")
def inputs(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Inputs of a training of the subject."""
    return {
        "checkpoints": urls[CHECKPOINT],
        "training_images": str(subject_zip(tmp_path_factory.mktemp("pictures") / "pictures.zip")),
        "trigger_word": TRIGGER_WORD,
        "lora_name": TRIGGER_WORD,
        "steps": STEPS,
        "resolution": SIDE,
    }


def train(trainer: Served, folder: Path, inputs: dict[str, Any]) -> Trained:
    answer = trainer.server.call(inputs, timeout_s=CALL_S)
    assert answer["status"] == "succeeded", answer
    # Each training of this server writes to the same WEIGHTS_OUT.
    return Trained(answer, Path(answer["output"]["weights"]).rename(folder / "weights.tar"), inputs)


@pytest.fixture(scope="module")
def trained(trainer: Served, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(trainer, tmp_path_factory.mktemp("trained"), inputs)


@pytest.fixture(scope="module")
def continued(trainer: Served, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("continued")
    lora = folder / "earlier.safetensors"
    lora.write_bytes(trained.lora())
    with serve_files({"earlier.safetensors": lora}) as served:
        inputs = {**trained.inputs, "existing_lora": served["earlier.safetensors"], "steps": MEASURED}
        return train(trainer, folder, inputs)


def test_the_tar_holds_the_checkpoint_the_lora_and_what_belongs_to_it(trained: Trained, urls: dict[str, str]) -> None:
    with tarfile.open(trained.tar) as tar:
        names = tar.getnames()
    manifest = Manifest.parse(trained.member("weights_manifest.json"))
    assert [(weight.path, weight.url) for weight in manifest.weights] == [
        (CHECKPOINT, urls[CHECKPOINT]),
        (f"loras/{TRIGGER_WORD}.safetensors", None),
    ]
    papers = [f"training/{name}" for name in ("parameters.json", "loss.csv", "loss.png")]
    papers += ["training/sample_without_lora.png", "training/sample_with_lora.png"]
    assert [weight.path for weight in manifest.training] == papers
    assert sorted(names) == sorted(["weights_manifest.json", CHECKPOINT, *papers, manifest.weights[1].path])
    for weight in manifest.training:
        assert hashlib.sha256(trained.member(weight.path)).hexdigest() == weight.sha256


def test_every_pass_has_its_loss(trained: Trained) -> None:
    rows = list(csv.DictReader(trained.member("training/loss.csv").decode().splitlines()))
    assert [int(row["pass"]) for row in rows] == list(range(1, STEPS + 1))
    assert all(float(row["loss"]) > 0 for row in rows)


def test_the_record_and_the_metadata_say_the_same(trained: Trained) -> None:
    record = json.loads(trained.member("training/parameters.json"))
    _, metadata = read_tensors(trained.lora(), "lora")
    manifest = Manifest.parse(trained.member("weights_manifest.json"))
    assert record["checkpoint_sha256"] == metadata["ss_new_sd_model_hash"] == manifest.weights[0].sha256
    assert record["dataset_sha256"] == metadata["comfyui_dataset_sha256"]
    assert record["parameters"] == json.loads(metadata["comfyui_parameters"])
    assert record["comfyui_version"] == metadata["comfyui_comfyui_version"] == "0.30.0"
    assert record["final_loss"] == pytest.approx(float(metadata["comfyui_final_loss"]))
    assert (metadata["ss_base_model_version"], metadata["ss_steps"]) == ("sd_v1", str(STEPS))
    assert json.loads(metadata["ss_tag_frequency"]) == {f"10_{TRIGGER_WORD}": {TRIGGER_WORD: 6}}
    assert metadata["ss_num_train_images"] == "60"
    assert record["sample_difference"] > 1


def test_the_log_tells_the_dataset_the_parameters_and_how_far_it_is(trained: Trained) -> None:
    logs = trained.answer["logs"]
    assert "Dataset: 6 images, 60 with repeats" in logs
    assert "  learning_rate = 0.0005" in logs
    assert re.search(rf"^ *\d+%\|.{{10}}\| \d+/{STEPS} loss [\d.]+$", logs, re.MULTILINE)
    assert re.search(rf"^100%\|█{{10}}\| {STEPS}/{STEPS} loss", logs, re.MULTILINE)
    assert "All keys of the LoRA apply" in logs
    assert f'LoraLoader.lora_name = "{TRIGGER_WORD}.safetensors"' in logs
    assert "Import times for custom nodes" not in logs


def test_a_restore_brings_the_weights_and_nothing_else(
    trained: Trained, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    said: list[str] = []
    with serve_files({"weights.tar": trained.tar}) as served:
        restore(served["weights.tar"], tmp_path / "models", make_settings(), PlainLines(said.append))
    files = {path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models").rglob("*.*")}
    assert {name for name in files if not name.startswith(".")} == {CHECKPOINT, f"loras/{TRIGGER_WORD}.safetensors"}
    assert not any("damaged" in line for line in said)


def test_the_same_inputs_give_the_same_bytes(trainer: Served, trained: Trained, tmp_path: Path) -> None:
    again = train(trainer, tmp_path, trained.inputs)
    assert hashlib.sha256(again.lora()).hexdigest() == hashlib.sha256(trained.lora()).hexdigest()
    assert hashlib.sha256(again.tar.read_bytes()).hexdigest() == hashlib.sha256(trained.tar.read_bytes()).hexdigest()


async def losses_of(engine: Engine, prompt: dict[str, Any]) -> tuple[float, ...]:
    patience = Patience(Deadline(CALL_S, "Measuring"), CALL_S)
    entry = await run_graph(engine, prompt, patience, lambda _item: None)
    return Losses.of_output(entry.outputs[LOSSES]).values


async def test_the_lora_makes_the_loss_lower_and_is_what_a_continued_training_begins_with(
    trained: Trained, continued: Trained, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by the same node on the same pictures with the same noise, and steps too small to change a thing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = make_settings()
    for folder, name in (("checkpoints", "tiny-sd15"), ("loras", "trained")):
        (settings.models_dir / folder).mkdir(parents=True)
        path = settings.models_dir / folder / f"{name}.safetensors"
        if folder == "loras":
            path.write_bytes(trained.lora())
        else:
            path.symlink_to(demo_files(*SD15)[CHECKPOINT])
    dataset = prepare_dataset(
        Path(trained.inputs["training_images"]),
        settings.data_dir / "dataset",
        resolution=SIDE,
        trigger_word=TRIGGER_WORD,
    )
    parameters = TrainingParameters(steps=MEASURED, learning_rate=0.0000001, resolution=SIDE)
    plain = training_graph(dataset.images, parameters, "tiny-sd15.safetensors")
    with_lora = training_graph(dataset.images, parameters, "tiny-sd15.safetensors")
    with_lora["lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["base", 0], "lora_name": "trained.safetensors", "strength_model": 1.0},
    }
    with_lora["train"]["inputs"]["model"] = ["lora", 0]
    engine = Engine(settings, sink=lambda _line: None)
    try:
        await engine.ready()
        for image in dataset.images:
            (engine.folders.input / image.path.name).write_bytes(image.path.read_bytes())
        before, after = await losses_of(engine, plain), await losses_of(engine, with_lora)
    finally:
        await engine.stop()
    assert sum(after) < 0.8 * sum(before)
    rows = csv.DictReader(continued.member("training/loss.csv").decode().splitlines())
    first = float(next(rows)["loss"])
    assert first == pytest.approx(after[0], rel=0.02)
    assert first != pytest.approx(before[0], rel=0.1)


def test_a_continued_lora_counts_all_its_steps(trained: Trained, continued: Trained) -> None:
    _, metadata = read_tensors(continued.lora(), "lora")
    assert (metadata["ss_steps"], metadata["ss_max_train_steps"]) == (str(STEPS + MEASURED), str(MEASURED))
    assert metadata["comfyui_existing_lora_sha256"] == hashlib.sha256(trained.lora()).hexdigest()
    with tarfile.open(continued.tar) as tar:
        assert [name for name in tar.getnames() if name.startswith("loras/")] == [f"loras/{TRIGGER_WORD}.safetensors"]


def test_a_cancel_ends_comfyui_at_once_and_leaves_nothing(trainer: Served, inputs: dict[str, Any]) -> None:
    base_url, begun = trainer.server.base_url, len(trainer.lines)
    body = {"input": {**inputs, "steps": 100_000}}
    answer = requests.put(f"{base_url}/trainings/long", json=body, headers={"Prefer": "respond-async"}, timeout=30)
    assert answer.status_code == 202
    deadline = Deadline(CALL_S, "Waiting for the first steps")
    while not any(re.search(r"\| \d+/100000 loss", line) for line in trainer.lines[begun:]):
        deadline.check()
        time.sleep(0.05)
    engines = [child for child in psutil.Process(trainer.server.pid).children(recursive=True) if _is_comfyui(child)]
    assert engines
    assert requests.post(f"{base_url}/trainings/long/cancel", timeout=30).status_code == 200
    _, alive = psutil.wait_procs(engines, timeout=3)
    assert not alive
    deadline = Deadline(30, "Removing what the training left")
    while any((trainer.data_dir / "runs").iterdir()) or list(trainer.data_dir.parent.glob("*.tar*")):
        deadline.check()
        time.sleep(0.05)
    assert not list(trainer.data_dir.parent.glob(".*.part"))


def _is_comfyui(process: psutil.Process) -> bool:
    return any(argument.endswith("main.py") for argument in process.cmdline())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 0, "rank": 999}, ("steps is 0", "rank is 999")),
        ({"optimizer": "Prodigy"}, ("AdamW, Adam, SGD, RMSprop",)),
        ({"checkpoints": None}, ("No weights were given",)),
        ({"checkpoints": None, "loras": "loras/tiny-sd15-lora.safetensors"}, ("checkpoint to train on", "checkpoints")),
        ({"base_checkpoint": "other.safetensors"}, ("base_checkpoint", "tiny-sd15.safetensors")),
        ({"checkpoints": "loras/tiny-sd15-lora.safetensors"}, ("it is a LoRA itself",)),
        ({"lora_name": "tiny-sd15-lora", "loras": "loras/tiny-sd15-lora.safetensors"}, ("lora_name", "taken")),
        ({"existing_lora": "loras/tiny-sd15-lora.safetensors"}, ("cannot be trained further", "lora_unet_")),
        ({"training_images": CHECKPOINT}, ("training_images", "neither a zip nor a tar")),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_fetched(
    trainer: Served, inputs: dict[str, Any], urls: dict[str, str], changed: dict[str, Any], said: tuple[str, ...]
) -> None:
    begun = len(trainer.lines)
    changed = {name: urls.get(value, value) if name != "training_images" else value for name, value in changed.items()}
    if "training_images" in changed:
        changed["training_images"] = str(demo_files(*SD15)[CHECKPOINT])
    error = trainer.error_of(**{**inputs, **changed})
    for words in said:
        assert words in error
    assert not any(line.startswith("baking ") for line in trainer.lines[begun:])
