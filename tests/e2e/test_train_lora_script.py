"""scripts/train-lora and quickstart --images, as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.local.file_server import serve_files
from comfyui.local.train_lora import identity, main
from comfyui.settings import PROJECT_ROOT, Settings
from comfyui.training.tensors import read_tensors
from comfyui.weights.sources import NO_TOKENS, RemoteFile, understand
from tests.parts import SD15, demo_files
from tests.training.subject import picture

CHECKPOINT = "checkpoints/tiny-sd15.safetensors"
LIMIT_S = 240


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of pictures in two shapes, one of them with a caption."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        picture(number, (64, 128) if number % 2 else (64, 64)).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("zorb, grey")
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DATA_DIR": str(tmp_path / "data"),
        "ALLOW_PRIVATE_URLS": "1",
    }


def hear_ctrl_c() -> None:
    """In a child, before its program: a test run in the background hands on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def command(name: str, *arguments: object) -> list[str]:
    return [str(PROJECT_ROOT / "scripts" / name), *map(str, arguments)]


def test_a_folder_and_a_link_become_a_lora(images: Path, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "zorb-training").mkdir()
    (tmp_path / "zorb-training" / "sample_step_000250.png").write_bytes(b"of an earlier training")
    (tmp_path / "zorb-training" / "notes.txt").write_bytes(b"the person's own")
    with serve_files(demo_files(*SD15)) as urls:
        arguments = ["images", "--checkpoint", urls[CHECKPOINT], "--out", "zorb.safetensors", "--resolution", "64"]
        arguments += ["--steps", "3", "--batch-size", "2", "--trigger-word", "zorb", "--learning-rate", "0.001"]
        arguments += ["--overwrite"]
        done = subprocess.run(
            command("train-lora", *arguments),
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lora, papers = tmp_path / "zorb.safetensors", tmp_path / "zorb-training"
    assert done.stdout.splitlines() == [str(lora), str(papers)]
    assert "100%|██████████| 3/3 loss" in done.stderr
    _, metadata = read_tensors(lora.read_bytes(), lora.name)
    assert metadata["ss_output_name"] == "zorb"
    assert json.loads((papers / "parameters.json").read_text("utf-8"))["parameters"]["batch_size"] == 2
    with Image.open(papers / "sample_with_lora.png") as sample:
        assert sample.size == (64, 64)
    assert not (papers / "sample_step_000250.png").exists()
    assert (papers / "notes.txt").exists()
    assert list((tmp_path / "data" / "runs").iterdir()) == []


def test_ctrl_c_leaves_nothing(images: Path, environ: dict[str, str], tmp_path: Path) -> None:
    checkpoint = demo_files(*SD15)[CHECKPOINT]
    arguments = ["images", "--checkpoint", checkpoint, "--out", "x.safetensors", "--resolution", 64, "--steps", 100000]
    process = subprocess.Popen(
        command("train-lora", *arguments),
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    with process:
        assert process.stderr is not None
        while "/100000" not in (line := process.stderr.readline()):
            assert line, "it ended before its first step"
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=10) == 130
    assert "Stopped; ComfyUI has ended" in rest
    assert "Traceback" not in rest
    assert list((tmp_path / "data" / "runs").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "images"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--checkpoint", "LORA", "--out", "a.safetensors"], 1, "it is a LoRA itself"),
        (["--checkpoint", "CHECKPOINT", "--out", "a.safetensors", "--steps", "0"], 1, "steps is 0"),
        (["--checkpoint", "CHECKPOINT", "--out", "there.safetensors"], 1, "--overwrite"),
        (["--checkpoint", "CHECKPOINT", "--out", "a.pt"], 2, "ends in .safetensors"),
        (["--checkpoint", "a.gguf", "--out", "a.safetensors"], 1, "a.gguf: there is no such file"),
        (["--checkpoint", "CHECKPOINT", "--out", "folder.safetensors", "--overwrite"], 1, "in the way; name another"),
        (["--checkpoint", "CHECKPOINT", "--out", "there.safetensors/a.safetensors"], 1, "cannot be written"),
        (["--checkpoint", "CHECKPOINT", "--out", "/proc/x/a.safetensors"], 1, "cannot be written"),
        (["--out", "a.safetensors"], 2, "--checkpoint"),
    ],
)
def test_what_cannot_be_is_said_without_a_stack_trace(
    images: Path,
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    files = demo_files(*SD15)
    named = {"LORA": str(files["loras/tiny-sd15-lora.safetensors"]), "CHECKPOINT": str(files[CHECKPOINT])}
    (tmp_path / "there.safetensors").touch()
    (tmp_path / "folder.safetensors").mkdir()
    monkeypatch.setenv("CALLER_DIR", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", environ["DATA_DIR"])
    try:
        seen = main([str(images), "--resolution", "64", *(named.get(argument, argument) for argument in arguments)])
    except SystemExit as leaving:
        seen = int(leaving.code or 0)
    assert seen == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_fetched_checkpoint_is_another_where_its_content_is(settings: Settings) -> None:
    def remote(url: str = "https://a/model.safetensors", **known: Any) -> RemoteFile:
        source = understand(url, settings, NO_TOKENS)
        facts = {"name": "model.safetensors", "size": 5, "sha256": None, "validator": '"1"', "ranges": True, **known}
        return RemoteFile(source=source, url=url, manifest_url=url, **facts)

    one = identity(remote())
    assert identity(remote()) == one
    assert identity(remote(url="https://b/model.safetensors")) != one
    assert identity(remote(validator='"2"')) != one
    by_sum = identity(remote(sha256="0" * 64))
    assert by_sum == identity(remote(url="https://b/model.safetensors", sha256="0" * 64))
    assert by_sum != identity(remote(sha256="1" * 64))


def test_quickstart_goes_from_pictures_to_a_picture(images: Path, environ: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--images", "images", "--train-steps", "2", "--trigger-word", "zorb", "--out", "out", "--seed", "1"]
    done = subprocess.run(
        command("quickstart", *arguments),
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "All keys of the LoRA apply" in done.stdout
    (made,) = (tmp_path / "out").glob("*.png")
    # ComfyUI writes the workflow that made it into each PNG.
    with Image.open(made) as image:
        workflow = json.loads(image.info["prompt"])
    loras = [node["inputs"]["lora_name"] for node in workflow.values() if node["class_type"] == "LoraLoader"]
    assert loras == ["my_lora.safetensors"]
    texts = [node["inputs"]["text"] for node in workflow.values() if node["class_type"] == "CLIPTextEncode"]
    assert "zorb" in texts
