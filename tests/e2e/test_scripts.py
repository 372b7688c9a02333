"""The scripts as people type them, from another folder than the project's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from comfyui.local.serve import newest_bake
from comfyui.settings import PROJECT_ROOT, Settings
from tests.parts import SD15, TEST_MODELS, demo_files

LIMIT_S = 240


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Our Python, so that no script installs anything; data in a folder of its own, the demo weights in it already."""
    data = tmp_path_factory.mktemp("script-data")
    demo_files(*SD15)
    (data / "demo-models").symlink_to(TEST_MODELS)
    return {**os.environ, "PYTHON": sys.executable, "DATA_DIR": str(data)}


def script(name: str, *arguments: str, cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT_ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def hear_ctrl_c() -> None:
    """In a child, before its program: a test run in the background hands on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def first_picture(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first quickstart, with a folder for the pictures named from where it was typed."""
    here = tmp_path_factory.mktemp("elsewhere")
    done = script("quickstart", "--seed", "1", "--out", "pictures", cwd=here, environ=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[5/5] Run the workflow with seed 1" in done.stdout
    assert done.stderr == ""
    (picture,) = (here / "pictures").iterdir()
    assert str(picture) in done.stdout
    return picture


def test_quickstart_ends_with_a_png(first_picture: Path) -> None:
    with Image.open(first_picture) as image:
        assert (image.format, image.size) == ("PNG", (256, 256))


@pytest.mark.parametrize(
    "change", [("--seed", "2"), ("--seed", "1", "--prompt", "a blue whale"), ("--seed", "1", "--lora-strength", "0.1")]
)
def test_a_second_quickstart_reuses_the_bake_and_changes_the_picture(
    first_picture: Path, environ: dict[str, str], tmp_path: Path, change: tuple[str, ...]
) -> None:
    done = script("quickstart", *change, "--out", ".", cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "already baked" in done.stdout
    (picture,) = tmp_path.glob("*.png")
    assert pixels(picture) != pixels(first_picture)


def test_quickstart_bakes_a_file_and_runs_a_workflow_of_the_persons_own(
    environ: dict[str, str], tmp_path: Path
) -> None:
    checkpoint = demo_files("checkpoints/tiny-sd3-notext")["checkpoints/tiny-sd3-notext.safetensors"]
    workflow = PROJECT_ROOT / "examples" / "workflows" / "tiny_sd3.json"
    (tmp_path / "mine.json").write_bytes(workflow.read_bytes())
    (tmp_path / "tiny-sd3-notext.safetensors").symlink_to(checkpoint)
    arguments = ("--checkpoint", "tiny-sd3-notext.safetensors", "--workflow", "mine.json", "--out", "out")
    done = script("quickstart", *arguments, cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--lora", "x.safetensors"), 2, "--lora needs --checkpoint"),
        (("--workflow", "nowhere.json"), 1, "nowhere.json: there is no such file"),
        (("--checkpoint", "not-a-url"), 1, "not-a-url"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message_without_a_stack_trace(
    environ: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = script("quickstart", *arguments, cwd=tmp_path, environ=environ)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches(environ: dict[str, str], tmp_path: Path) -> None:
    for name in (
        "quickstart",
        "serve",
        "generate",
        "train-lora",
        "replicate",
        "weights",
        "workflow",
        "fetch-comfyui",
        "setup",
    ):
        done = script(name, "--help", cwd=tmp_path, environ=environ)
        assert done.returncode == 0
        assert len(done.stdout) > 100


@pytest.fixture
def serving(
    first_picture: Path, environ: dict[str, str], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """scripts/serve once it is ready, and what it printed until then."""
    command = [str(PROJECT_ROOT / "scripts" / "serve"), "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        printed = ""
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if "Stop with Ctrl-C" in line:
                break
        yield process, printed
        process.kill()


def test_serve_prints_a_curl_line_that_works_and_stops_on_ctrl_c(
    serving: tuple[subprocess.Popen[str], str], environ: dict[str, str], tmp_path: Path
) -> None:
    process, printed = serving
    assert str(newest_bake(Settings.from_environ(environ))) in printed
    found = re.search(r"^curl .*\n  \| .*$", printed, re.MULTILINE)
    assert found, printed
    subprocess.run(["bash", "-c", found[0]], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (256, 256)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    _gone, left = psutil.wait_procs(family, timeout=10)
    assert left == []


def test_ctrl_c_in_quickstart_leaves_no_process_and_no_half_tar(environ: dict[str, str], tmp_path: Path) -> None:
    fresh = {**environ, "DATA_DIR": str(tmp_path / "data")}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo-models").symlink_to(TEST_MODELS)
    command = [str(PROJECT_ROOT / "scripts" / "quickstart")]
    with subprocess.Popen(
        command, cwd=tmp_path, env=fresh, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[4/5]"):
                break
        end = time.monotonic() + 30
        while not (family := psutil.Process(process.pid).children(recursive=True)):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    _gone, left = psutil.wait_procs(family, timeout=10)
    assert left == []
    assert list((tmp_path / "data").rglob("*.part")) == []
