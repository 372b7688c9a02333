"""scripts/generate as people type it, against Cog's real predict server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.local.cog_server import CogServer
from comfyui.settings import PROJECT_ROOT
from tests.e2e.conftest import Served
from tests.parts import SD15, TEST_MODELS, demo_files

LIMIT_S = 120
SMALL = ("--checkpoint", "tiny-sd15", "--size", "64", "--steps", "2")
ENDLESS = ("--checkpoint", "tiny-sd15", "--size", "64", "--steps", "10000")


class Generate:
    """The script, typed in a folder of its own, for one server."""

    def __init__(self, here: Path, url: str) -> None:
        self.here = here
        self._config = here / "mine.toml"
        self._config.write_text('[loras]\nmimi = "tiny-sd15-lora.safetensors:0.7"\n', "utf-8")
        self.environ = {
            **os.environ,
            "PYTHON": sys.executable,
            "COG_SERVER_URL": url,
            "MODELS_DIR": str(TEST_MODELS),
            "DATA_DIR": str(here / "data"),
        }

    def command(self, *arguments: str) -> list[str]:
        script = str(PROJECT_ROOT / "scripts" / "generate")
        return [script, "--prompt", "a red fox", "--config", str(self._config), "--out", "pics", *arguments]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.here,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def made(self, *arguments: str) -> dict[str, Any]:
        """What --json says of a call that must succeed."""
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @contextmanager
    def sampling(self) -> Iterator[subprocess.Popen[str]]:
        """A call that would take an hour, once its sampler is at work."""
        with subprocess.Popen(
            self.command(*ENDLESS),
            cwd=self.here,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background hands on that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    if "Sampler, step" in line:
                        break
                yield process
            finally:
                process.kill()


@pytest.fixture
def generate(predictor: Served, tmp_path: Path) -> Generate:
    demo_files(*SD15)
    return Generate(tmp_path, predictor.server.base_url)


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_a_picture_its_seed_and_its_progress(generate: Generate) -> None:
    done = generate(*SMALL, "--lora", "mimi", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = done.stdout.splitlines()
    assert Path(path).parent == generate.here / "pics"
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (64, 64))
    said = done.stderr.splitlines()
    assert said[0] == (
        "Seed 7 (--seed 7 makes it again), 64x64, 2 steps, tiny-sd15.safetensors, LoRA tiny-sd15-lora.safetensors:0.7"
    )
    assert any("Sampler, step 2 of 2" in line for line in said)
    assert "100%|██████████| 8/8 done" in said
    assert not any("[comfyui]" in line for line in said)
    again = generate.made(*SMALL, "--lora", "tiny-sd15-lora:0.7", "--seed", "7", "--format", "webp", "--quality", "100")
    assert again["files"] != [path]
    assert Path(again["files"][0]).suffix == ".webp"
    same = generate.made(*SMALL, "--lora", "tiny-sd15-lora", "--strength", "0.7", "--seed", "7")
    assert pixels(same["files"][0]) == pixels(path)


def test_each_thing_that_is_said_changes_the_picture(generate: Generate) -> None:
    base = ("--seed", "7", *SMALL)
    pictures = [
        generate.made(*base),
        generate.made(*base, "--lora", "mimi"),
        generate.made(*base, "--lora", "mimi", "--lora", "tiny-sd15-lora:-1"),
        generate.made(*base, "--cfg", "1"),
        generate.made(*base, "--negative", "snow"),
        generate.made(*base, "--sampler", "euler", "--scheduler", "karras"),
    ]
    assert [picture["seed"] for picture in pictures] == [7] * 6
    assert len({pixels(picture["files"][0]) for picture in pictures}) == 6
    assert pictures[0]["metrics"]["predict_time"] > 0


def test_pictures_that_begin_from_another(generate: Generate) -> None:
    photo = generate.here / "photo.jpg"
    Image.new("RGB", (96, 48), "orange").save(photo)
    (generate.here / "mine.toml").write_text('checkpoint = "tiny-sd15"\nsize = "64"\nsteps = 2\n', "utf-8")
    made = generate.made("--image", "photo.jpg", "--denoise", "0.5", "--batch", "2")
    assert len(made["files"]) == 2
    for path in made["files"]:
        with Image.open(path) as image:
            assert image.size == (88, 48)
    assert pixels(made["files"][0]) != pixels(made["files"][1])


def test_a_lora_by_its_link_is_the_same_as_by_its_name(generate: Generate, weight_urls: dict[str, str]) -> None:
    link = weight_urls["loras/tiny-sd15-lora.safetensors"]
    base = ("--seed", "7", *SMALL)
    by_link = generate.made(*base, "--lora", f"{link}:0.7")
    assert pixels(by_link["files"][0]) == pixels(generate.made(*base, "--lora", "mimi")["files"][0])


def test_a_lora_that_is_not_there_is_the_predictors_own_error(generate: Generate) -> None:
    done = generate(*SMALL, "--lora", "tiny-sd15-lorra")
    assert done.returncode == 1
    assert done.stdout == ""
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ComfyUI cannot run this workflow: ")
    assert "lora_name is 'tiny-sd15-lorra.safetensors'" in said
    assert "tiny-sd15-lora.safetensors" in said
    assert "Traceback" not in done.stderr
    assert not list((generate.here / "pics").iterdir())


def test_ctrl_c_cancels_the_prediction_and_the_server_is_free_again(generate: Generate) -> None:
    with generate.sampling() as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "Stopped; the prediction was cancelled, and nothing was saved."
    assert "Traceback" not in err
    assert not list((generate.here / "pics").iterdir())
    # Ten thousand steps would keep it busy for longer than this.
    assert generate(*SMALL, "--wait", "20").returncode == 0


def test_a_script_that_is_killed_leaves_no_prediction_behind(generate: Generate) -> None:
    with generate.sampling() as process:
        process.kill()
        process.communicate(timeout=30)
    assert generate(*SMALL, "--wait", "20").returncode == 0


def test_a_busy_server_is_waited_for(generate: Generate, predictor: Served) -> None:
    busy = f"{predictor.server.base_url} is busy with another prediction"
    with generate.sampling() as process:
        done = generate(*SMALL, "--wait", "0.5")
        assert done.returncode == 1
        assert f"{busy}, for 0.5 s now. Try again later, or wait longer." in done.stderr
        with subprocess.Popen(
            generate.command(*SMALL),
            cwd=generate.here,
            env=generate.environ,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as waiting:
            assert waiting.stderr is not None
            for line in waiting.stderr:
                if f"{busy}; waiting for it, up to 600 s." in line:
                    break
            process.kill()
            out, err = waiting.communicate(timeout=LIMIT_S)
            assert waiting.returncode == 0, err
    assert Path(out.strip()).is_file()


def test_a_server_whose_setup_failed_is_not_waited_for(tmp_path: Path) -> None:
    environ = {"COMFYUI_DIR": str(tmp_path / "nowhere"), "DATA_DIR": str(tmp_path / "data")}
    with CogServer("predict", environ=environ, sink=lambda line: None) as server:
        while server.health().get("status") not in ("SETUP_FAILED", "STARTING"):
            assert server.returncode() is None
            time.sleep(0.1)
        done = Generate(tmp_path, server.base_url)(*SMALL)
    assert done.returncode == 1
    assert "takes no predictions: its state is SETUP_FAILED. Its own log says why" in done.stderr
    assert "Traceback" not in done.stderr
