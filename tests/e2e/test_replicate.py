"""`scripts/replicate --local`: the same commands against real Cog servers with real ComfyUI and real weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image

from comfyui.settings import PROJECT_ROOT
from comfyui.weights.manifest import MANIFEST_NAME
from tests.e2e.conftest import Served

SCRIPT = str(PROJECT_ROOT / "scripts" / "replicate")
SD3 = str(PROJECT_ROOT / "examples" / "workflows" / "tiny_sd3.json")
LIMIT_S = 120


def command(*arguments: str) -> list[str]:
    return [SCRIPT, *arguments]


def environ(tmp_path: Path) -> dict[str, str]:
    gone = {"REPLICATE_API_TOKEN", "HF_TOKEN", "HF_READ_TOKEN", "CIVITAI_TOKEN"}
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    return {**kept, "PYTHON": sys.executable, "DATA_DIR": str(tmp_path / "data"), "ALLOW_PRIVATE_URLS": "1"}


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def sampler_of(path: str) -> str:
    nodes = json.loads(Path(path).read_text())
    return str(next(node_id for node_id, node in nodes.items() if "seed" in node["inputs"]))


def test_predict_makes_a_picture_and_the_same_one_again(predictor: Served, tmp_path: Path) -> None:
    seed = f"{sampler_of(SD3)}.seed=5"
    local = ("predict", "--local", predictor.server.base_url, SD3, seed, "--input", "output_format=png", "--out", "out")
    first = run(tmp_path, *local)
    assert first.returncode == 0, first.stderr
    assert "%|" in first.stderr
    again = run(tmp_path, *local, "--json")
    (one,), (two,) = first.stdout.split(), json.loads(again.stdout.splitlines()[-1])["files"]
    assert one != two
    with Image.open(one) as picture, Image.open(two) as other:
        assert picture.format == "PNG"
        assert picture.tobytes() == other.tobytes()


def test_the_predictors_own_words_are_the_error(predictor: Served, tmp_path: Path) -> None:
    workflow = json.loads(Path(SD3).read_text())
    loader = next(node_id for node_id, node in workflow.items() if "ckpt_name" in node["inputs"])
    done = run(
        tmp_path, "predict", "--local", predictor.server.base_url, SD3, f"{loader}.ckpt_name=nowhere.safetensors"
    )
    assert done.returncode == 1
    assert "ckpt_name is 'nowhere.safetensors', which is not there" in done.stderr


def test_a_picture_of_this_machine_is_sent_along(predictor: Served, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "photo.png")
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "input.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    local = ("predict", "--local", predictor.server.base_url, "w.json", "--input", "output_format=png", "--out", "out")
    for arguments in (("1.image=@photo.png",), ("--input-file", "photo.png")):
        done = run(tmp_path, *local[:4], *arguments, *local[4:])
        assert done.returncode == 0, done.stderr
        with Image.open(done.stdout.strip()) as picture:
            assert picture.getpixel((0, 0)) == (200, 10, 10)


def test_ctrl_c_cancels_what_runs_here(predictor: Served, tmp_path: Path) -> None:
    seed = sampler_of(SD3)
    with subprocess.Popen(
        command("predict", "--local", predictor.server.base_url, SD3, f"{seed}.steps=10000", f"{seed}.seed=1"),
        cwd=tmp_path,
        env=environ(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        assert any("%|" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in said
    # Its slot is free again.
    assert run(tmp_path, "predict", "--local", predictor.server.base_url, SD3, "--out", "out").returncode == 0


def test_train_bakes_a_tar_here(train_server: Served, weight_urls: dict[str, str], tmp_path: Path) -> None:
    lora = next(url for path, url in weight_urls.items() if path.startswith("loras/"))
    done = run(tmp_path, "train", "--local", train_server.server.base_url, "--lora", lora, "--out", "out")
    assert done.returncode == 0, done.stderr
    tar = Path(done.stdout.strip())
    listed = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True).stdout.split()
    assert listed[0] == MANIFEST_NAME
    assert len(listed) == 2
    tar.unlink()


def test_nobody_there_names_the_script_that_helps(tmp_path: Path) -> None:
    done = run(tmp_path, "predict", "--local", "http://127.0.0.1:9", SD3)
    assert done.returncode == 1
    assert "./scripts/serve" in done.stderr
