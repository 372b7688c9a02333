"""Demo weights: the same bytes every time, whole files only, and readable by the real safetensors library."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from comfyui.errors import RequestError
from comfyui.local.demo import weights as demo_weights
from comfyui.local.demo.layers import Layers, is_complete, save_half
from comfyui.local.demo.weights import RECIPES, make_demo_weights
from tests.parts import largest_file

ROOT = Path(__file__).resolve().parents[2]
SMALL = [name for name in RECIPES if name != "checkpoints/tiny-sd15"]
LORA = "loras/tiny-sd3-lora"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_demo_weights(folder, RECIPES)
    return folder


def test_names_become_paths_below_the_models_folder(made: Path) -> None:
    assert make_demo_weights(made, RECIPES) == [made / f"{name}.safetensors" for name in RECIPES]
    assert not [path for path in made.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize("name", SMALL)
def test_the_same_recipe_gives_the_same_bytes(made: Path, tmp_path: Path, name: str) -> None:
    [again] = make_demo_weights(tmp_path, [name])
    first = made / f"{name}.safetensors"
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(first.read_bytes()).digest()


@pytest.mark.parametrize("name", RECIPES)
def test_the_safetensors_library_reads_finite_halves(made: Path, name: str) -> None:
    with safe_open(made / f"{name}.safetensors", framework="pt") as file:
        assert file.metadata() == RECIPES[name].metadata(name)
        for key in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(key)
            assert tensor.dtype == torch.float16
            assert bool(torch.isfinite(tensor).all()), key


def test_the_big_checkpoint_is_mostly_holes(made: Path) -> None:
    stat = (made / "checkpoints/tiny-sd15.safetensors").stat()
    assert 270e6 < stat.st_size < 290e6
    if stat.st_blocks * 512 >= stat.st_size:
        pytest.skip("this disk keeps no holes")
    assert stat.st_blocks * 512 < stat.st_size / 2


def test_a_complete_file_is_left_alone(made: Path) -> None:
    path = made / f"{LORA}.safetensors"
    os.utime(path, (1, 1))
    make_demo_weights(made, [LORA])
    assert path.stat().st_mtime == 1


HEADER_ONLY = b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 8,
        (5).to_bytes(8, "little") + b"{}{}{",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        len(HEADER_ONLY).to_bytes(8, "little") + HEADER_ONLY + b"xx",
    ],
)
def test_anything_else_under_the_name_is_made_anew(made: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"{LORA}.safetensors"
    path.parent.mkdir()
    path.write_bytes(content)
    make_demo_weights(tmp_path, [LORA])
    assert path.read_bytes() == (made / f"{LORA}.safetensors").read_bytes()


def test_a_cut_or_outdated_file_is_not_complete(tmp_path: Path) -> None:
    [path] = make_demo_weights(tmp_path, [LORA])
    metadata = RECIPES[LORA].metadata(LORA)
    assert is_complete(path, metadata)
    assert not is_complete(path, {**metadata, "version": "0"})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert not is_complete(path, metadata)
    assert not is_complete(tmp_path / "none", metadata)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with largest_file(300), pytest.raises(OSError, match="File too large"):
        save_half({"a": torch.ones(500)}, path, {})
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.safetensors", b"old")]


def test_values_zeros_and_scalars_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([[1.0, -2.5]]), "hole": torch.zeros(3, 5), "scalar": torch.tensor(4.0)}
    tensors["last hole"] = torch.zeros(4)
    save_half(tensors, tmp_path / "a.safetensors", {})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name).float(), tensor)


def test_noise_has_the_size_that_was_asked_for() -> None:
    noise = Layers(seed=1).noise(1000, 100, scale=0.3)
    assert abs(float(noise.std()) - 0.3) < 0.01
    assert abs(float(noise.mean())) < 0.01


def test_a_recipe_that_makes_a_tensor_twice_is_a_slip() -> None:
    layers = Layers(seed=1)
    layers.norm("n", 4)
    with pytest.raises(ValueError, match=r"n\.weight twice"):
        layers.norm("n", 4)


def test_an_unknown_name_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"called loras/no; there are: checkpoints/tiny-sd15"):
        make_demo_weights(tmp_path, [LORA, "loras/no"])
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_weights.main([str(tmp_path), LORA]) == 0
    assert capsys.readouterr().out == f"{tmp_path / LORA}.safetensors\n"
    assert demo_weights.main([str(tmp_path), "no"]) == 1
    assert "error: No demo weights are called no" in capsys.readouterr().err


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, comfyui.local.demo.weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_two_loras_change_the_same_layers_in_different_ways(made: Path) -> None:
    first, second = (load_file(made / f"loras/{name}.safetensors") for name in ("tiny-sd15-lora", "tiny-sd15-lora-2"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) == key.endswith(".alpha") for key in first)


EXAMPLES = sorted((ROOT / "examples" / "workflows").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_workflows_name_files_that_are_made(path: Path) -> None:
    loaders = {"ckpt_name": "checkpoints/", "lora_name": "loras/", "control_net_name": "controlnet/"}
    wanted = {
        loaders[key] + value.removesuffix(".safetensors")
        for node in json.loads(path.read_text("utf-8")).values()
        for key, value in node["inputs"].items()
        if key in loaders
    }
    assert wanted or path.stem == "audio"
    assert wanted <= set(RECIPES)
