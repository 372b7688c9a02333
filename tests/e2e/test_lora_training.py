"""A LoRA trained from pictures, through Cog's real train server and real ComfyUI, on the tiny checkpoint."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from PIL import Image

from comfyui.deadline import Deadline
from comfyui.engine.engine import LET_GO_S, Engine
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
from comfyui.weights.restore.restore import restore
from tests.e2e.conftest import READY_S, Served
from tests.parts import SD15, demo_files
from tests.training import dataset_parts
from tests.training.subject import SIDE, TRIGGER_WORD, subject_zip

CHECKPOINT = "checkpoints/tiny-sd15.safetensors"
STEPS = 24
LONG = {"steps": 100_000, "sample_every": 0}
CALL_S = 240.0
MEASURED = 6
"""Passes of the fixed noise that the loss is measured with."""
HALFWAY, LAST = f"training/sample_step_{STEPS // 2:06d}.png", "training/sample_with_lora.png"
UNSEEN_SEED = 77
"""The training's own seed is 0: this noise is none that it was trained with."""


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
    """Cog's train server."""
    folder = tmp_path_factory.mktemp("trainer")
    lines: list[str] = []
    environ = {
        "ALLOW_PRIVATE_URLS": "1",
        "WEIGHTS_OUT": str(folder / "weights.tar"),
        "DATA_DIR": str(folder / "data"),
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
        # With it, TrainLoraNode trains the alphas, too: what it would not go on from by itself.
        "lora_dtype": "fp32",
        "sample_every": STEPS // 2,
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
        inputs["sample_every"] = 0
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
    papers += ["training/sample_without_lora.png", "training/sample_with_lora.png", HALFWAY]
    assert [weight.path for weight in manifest.training] == papers
    assert sorted(names) == sorted(["weights_manifest.json", CHECKPOINT, *papers, manifest.weights[1].path])
    for weight in manifest.training:
        assert hashlib.sha256(trained.member(weight.path)).hexdigest() == weight.sha256


def test_the_sample_on_the_way_shows_the_lora_so_far(trained: Trained) -> None:
    samples = [trained.member(name) for name in ("training/sample_without_lora.png", HALFWAY, LAST)]
    shown = []
    for data in samples:
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (SIDE, SIDE)
            shown.append(image.tobytes())
    assert len(set(shown)) == 3


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
    assert manifest.trained == {"path": f"loras/{TRIGGER_WORD}.safetensors", **record}


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
    trained: Trained, continued: Trained, make_settings: Callable[..., Settings]
) -> None:
    """Measured by the same node on the same pictures with the same noise, and steps too small to change a thing."""
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

    def measuring(seed: int, *, with_lora: bool) -> dict[str, Any]:
        parameters = TrainingParameters(steps=MEASURED, learning_rate=0.0000001, resolution=SIDE, seed=seed)
        prompt = training_graph(dataset.images, parameters, "tiny-sd15.safetensors")
        if with_lora:
            prompt["lora"] = {
                "class_type": "LoraLoaderModelOnly",
                "inputs": {"model": ["base", 0], "lora_name": "trained.safetensors", "strength_model": 1.0},
            }
            prompt["train"]["inputs"]["model"] = ["lora", 0]
        return prompt

    engine = Engine(settings, sink=lambda _line: None)
    try:
        await engine.ready()
        for image in dataset.images:
            (engine.folders.input / image.path.name).write_bytes(image.path.read_bytes())
        before = await losses_of(engine, measuring(0, with_lora=False))
        after = await losses_of(engine, measuring(0, with_lora=True))
        unseen_before = await losses_of(engine, measuring(UNSEEN_SEED, with_lora=False))
        unseen_after = await losses_of(engine, measuring(UNSEEN_SEED, with_lora=True))
    finally:
        await engine.stop()
    assert sum(unseen_after) < 0.8 * sum(unseen_before)
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
    base_url = trainer.server.base_url
    engines = begin_long(trainer, {**inputs, **LONG}, "cancelled")
    assert requests.post(f"{base_url}/trainings/cancelled/cancel", timeout=30).status_code == 200
    _, alive = psutil.wait_procs(engines, timeout=LET_GO_S)
    assert not alive, "it was asked to let go, not ended"
    expect_nothing_left(trainer)


def test_comfyui_that_dies_in_the_middle_is_named_and_leaves_nothing(trainer: Served, inputs: dict[str, Any]) -> None:
    begun = len(trainer.lines)
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(trainer.server.call, {**inputs, **LONG}, timeout_s=CALL_S)
        for engine in wait_for_steps(trainer, begun):
            engine.kill()
        said = answer.result()
    assert said["status"] == "failed"
    assert "ComfyUI ended" in said["error"]
    assert "signal 9" in said["error"]
    expect_nothing_left(trainer)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"timeout": 1}, ("Training the LoRA took longer than the 1 s", "Give timeout a larger number")),
        ({"learning_rate": 1, "optimizer": "SGD"}, ("The training broke: from pass", "a smaller learning_rate than 1")),
    ],
)
def test_a_training_that_cannot_end_well_ends_early(
    trainer: Served, inputs: dict[str, Any], changed: dict[str, Any], said: tuple[str, ...]
) -> None:
    error = trainer.error_of(**{**inputs, **LONG, **changed})
    for words in said:
        assert words in error
    expect_nothing_left(trainer)


def begin_long(trainer: Served, inputs: dict[str, Any], name: str) -> list[psutil.Process]:
    """Start a training that nobody waits for; returns ComfyUI's processes once it makes steps."""
    begun = len(trainer.lines)
    url = f"{trainer.server.base_url}/trainings/{name}"
    answer = requests.put(url, json={"input": inputs}, headers={"Prefer": "respond-async"}, timeout=30)
    assert answer.status_code == 202
    return wait_for_steps(trainer, begun)


def wait_for_steps(trainer: Served, begun: int) -> list[psutil.Process]:
    """ComfyUI's processes, once the lines behind the first `begun` tell of a step."""
    deadline = Deadline(CALL_S, "Waiting for the first steps")
    while not any(re.search(r"\| \d+/100000 loss", line) for line in trainer.lines[begun:]):
        deadline.check()
        time.sleep(0.05)
    engines = [child for child in psutil.Process(trainer.server.pid).children(recursive=True) if _is_comfyui(child)]
    assert engines
    return engines


def expect_nothing_left(trainer: Served) -> None:
    """No folder of a run, and no tar, whole or not."""
    deadline = Deadline(30, "Removing what the training left")
    folder = trainer.data_dir.parent
    while any((trainer.data_dir / "runs").iterdir()) or [*folder.glob("*.tar*"), *folder.glob(".*.part")]:
        deadline.check()
        time.sleep(0.05)


def _is_comfyui(process: psutil.Process) -> bool:
    try:
        return any(argument.endswith("main.py") for argument in process.cmdline())
    except psutil.NoSuchProcess:
        return False


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
        ({"training_images": None}, ("trigger_word: this is for training a LoRA, and there are no pictures",)),
        ({"existing_lora": "me"}, ("me",)),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_fetched(
    trainer: Served, inputs: dict[str, Any], urls: dict[str, str], changed: dict[str, Any], said: tuple[str, ...]
) -> None:
    begun = len(trainer.lines)
    changed = {name: urls.get(value, value) if name != "training_images" else value for name, value in changed.items()}
    if changed.get("training_images"):
        changed["training_images"] = str(demo_files(*SD15)[CHECKPOINT])
    error = trainer.error_of(**{**inputs, **changed})
    for words in said:
        assert words in error
    assert not any(line.startswith("baking ") for line in trainer.lines[begun:])


ORANGE = dataset_parts.picture()
FORMS: list[tuple[str, dict[str, bytes | str], tuple[str, ...]]] = [
    (
        "loose.zip",
        {"a.png": ORANGE, "b.png": ORANGE},
        ("2 images, 2 with repeats", "Captions: 'zorb' alone: a.png, b.png"),
    ),
    ("kohya.tar", {"10_zorb/a.png": ORANGE, "3_hat/b.png": ORANGE}, ("2 images, 13 with repeats", "10_zorb: 10 x 1")),
    ("texts.zip", {"a.png": ORANGE, "a.txt": "zorb, red"}, ("1 of 1 image with one of their own",)),
    (
        "list.zip",
        {"a.png": ORANGE, "caption.csv": "image_file,caption\na.png,red"},
        ("1 of 1 image with one", "'zorb' put"),
    ),
    (
        "lines.tar.gz",
        {"a.png": ORANGE, "metadata.jsonl": '{"file_name": "a.png", "text": "zorb"}'},
        ("1 of 1 image with",),
    ),
    (
        "mac.zip",
        {"__MACOSX/._a.png": b"x", "a.png": ORANGE, "notes.pdf": b"x"},
        ("no image and no caption: notes.pdf",),
    ),
]


@pytest.mark.parametrize(("name", "files", "said"), FORMS, ids=[form[0] for form in FORMS])
def test_the_report_comes_before_anything_is_fetched(
    trainer: Served,
    inputs: dict[str, Any],
    urls: dict[str, str],
    tmp_path: Path,
    name: str,
    files: dict[str, bytes | str],
    said: tuple[str, ...],
) -> None:
    """The checkpoint is none, so that each form of a dataset is read to its end and nothing is trained."""
    archive = dataset_parts.archive_of(tmp_path / name, files)
    lora = urls["loras/tiny-sd15-lora.safetensors"]
    begun = len(trainer.lines)
    assert "it is a LoRA itself" in trainer.error_of(**{**inputs, "training_images": str(archive), "checkpoints": lora})
    # Cog's own answer to a failed call holds no log.
    deadline = Deadline(10, "The lines of the log")
    while not all(words in "\n".join(trainer.lines[begun:]) for words in said):
        deadline.check()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"notes.pdf": b"x"}, ("holds no images", "notes.pdf")),
        ({"a.heic": b"x"}, ("a.heic is a HEIC file", "Convert it")),
        ({"a.png": b"no picture"}, ("a.png is no picture by its content",)),
        ({"a.png": ORANGE[:-60]}, ("a.png is damaged",)),
        ({"a.png": ORANGE, "caption.csv": "file_name,text\nb.png,red"}, ("a caption for b.png in line 2", "not there")),
        ({"a.png": ORANGE, "a.txt": "\xff".encode("latin-1")}, ("a.txt is not UTF-8",)),
        ({"2024_photos/a.png": ORANGE}, ("2024 times",)),
        ({"../a.png": ORANGE}, ("leads out of the archive",)),
        ({"a.png": b"", "b.png": b""}, ("2 problems", "a.png is empty", "b.png is empty")),
    ],
)
def test_bad_pictures_are_named_before_anything_is_fetched(
    trainer: Served, inputs: dict[str, Any], tmp_path: Path, files: dict[str, bytes | str], said: tuple[str, ...]
) -> None:
    begun = len(trainer.lines)
    error = trainer.error_of(**{**inputs, "training_images": str(dataset_parts.archive_of(tmp_path / "a.zip", files))})
    for words in said:
        assert words in error
    assert not any(line.startswith("baking ") for line in trainer.lines[begun:])
