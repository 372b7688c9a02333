"""How ComfyUI is started: its command line, its environment, its port, and whether it may look for a GPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyui.engine.device import runs_on_cpu
from comfyui.engine.server import NO_FRONTEND, SPINS, EngineFolders, engine_environment, free_port, main_arguments
from comfyui.settings import Settings


def test_everything_comfyui_reads_and_writes_is_in_our_folders(settings: Settings, tmp_path: Path) -> None:
    folders = EngineFolders.under(tmp_path / "run")
    arguments = main_arguments(settings, folders, 8123, cpu=False)
    paired = dict(zip(arguments[:-2:2], arguments[1:-2:2], strict=True))
    assert paired == {
        "--listen": "127.0.0.1",
        "--port": "8123",
        "--models-directory": str(settings.models_dir),
        "--input-directory": str(tmp_path / "run" / "input"),
        "--output-directory": str(tmp_path / "run" / "output"),
        "--temp-directory": str(tmp_path / "run"),
        "--user-directory": str(tmp_path / "run" / "user"),
        "--database-url": "sqlite:///:memory:",
        "--front-end-root": str(NO_FRONTEND / "web"),
    }
    assert arguments[-2:] == ["--disable-auto-launch", "--disable-api-nodes"]
    assert folders.temp == tmp_path / "run" / "temp"
    assert all(folder.is_dir() for folder in (folders.input, folders.output, folders.temp, folders.user))
    assert (NO_FRONTEND / "web").is_dir()


def test_arguments_of_the_settings_come_last_so_that_they_win(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(engine_args=("--lowvram", "--listen", "0.0.0.0"))
    arguments = main_arguments(settings, EngineFolders.under(tmp_path), 1, cpu=True)
    assert arguments[-4:] == ["--cpu", "--lowvram", "--listen", "0.0.0.0"]


PARSE_ARGUMENTS = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
from comfy.options import enable_args_parsing
enable_args_parsing()
from comfy.cli_args import args
print(json.dumps({name: str(value) for name, value in vars(args).items()}))
"""


def test_comfyui_understands_the_arguments(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings(engine_args=("--lowvram",))
    if not (settings.upstream_dir / "comfy" / "cli_args.py").is_file():
        pytest.fail("ComfyUI is not here: run scripts/fetch-comfyui")
    settings.models_dir.mkdir()
    arguments = main_arguments(settings, EngineFolders.under(tmp_path / "a b"), 8123, cpu=False)
    answer = subprocess.run(
        [sys.executable, "-c", PARSE_ARGUMENTS, str(settings.upstream_dir), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    known = json.loads(answer.stdout)
    expected = {"port": "8123", "listen": "127.0.0.1", "cpu": "False", "lowvram": "True"}
    assert {name: known[name] for name in expected} == expected
    assert known["output_directory"] == str(tmp_path / "a b" / "output")


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CIVITAI_API_TOKEN", "CIVITAI_API_KEY", "REPLICATE_API_TOKEN"),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_secret", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_what_looks_like_a_secret_does_not_reach_custom_nodes(name: str) -> None:
    environment = engine_environment({name: "hush", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "0"})
    assert "hush" not in environment.values()
    assert (environment["HOME"], environment["CUDA_VISIBLE_DEVICES"]) == ("/root", "0")


def test_the_stand_in_packages_come_before_the_callers_pythonpath() -> None:
    ours = str(NO_FRONTEND / "packages")
    assert engine_environment({})["PYTHONPATH"] == ours
    assert engine_environment({"PYTHONPATH": "/a:/b"})["PYTHONPATH"] == f"{ours}:/a:/b"
    assert engine_environment({})["PYTHONUNBUFFERED"] == "1"
    assert Path(ours).is_dir()


def test_waiting_threads_spin_for_less_unless_somebody_says_how_long() -> None:
    assert engine_environment({})["GOMP_SPINCOUNT"] == SPINS
    assert engine_environment({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert "GOMP_SPINCOUNT" not in engine_environment({"OMP_WAIT_POLICY": "active"})


def test_a_free_port_can_be_listened_on_at_once() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    with socket.socket() as server:
        server.bind(("127.0.0.1", ports.pop()))
        server.listen()


@pytest.mark.parametrize(("device", "cpu"), [("cpu", True), ("gpu", False)])
def test_a_device_that_was_asked_for_is_used_unseen(
    make_settings: Callable[..., Settings], device: str, cpu: bool
) -> None:
    assert runs_on_cpu(make_settings(device=device)) is cpu


@pytest.mark.skipif(sys.platform == "darwin", reason="ComfyUI chooses by itself there")
@pytest.mark.parametrize("visible", [None, ""], ids=["as it is", "GPUs hidden"])
def test_without_being_asked_it_agrees_with_torch(visible: str | None) -> None:
    """In a child: both remember what they saw first, and CUDA_VISIBLE_DEVICES is read once."""
    program = (
        "import sys\n"
        "from comfyui.engine.device import runs_on_cpu\n"
        "from comfyui.settings import Settings\n"
        "ours = runs_on_cpu(Settings.from_environ({}))\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "print(ours, not torch.cuda.is_available())\n"
    )
    environ = os.environ if visible is None else {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    ours, torchs = answer.stdout.split()
    assert ours == torchs
    if visible == "":
        assert ours == "True"
