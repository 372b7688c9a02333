"""Model folders, training inputs and member paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import WeightsError
from comfyui.settings import PROJECT_ROOT
from comfyui.weights.folders import (
    MODEL_FOLDERS,
    TRAINING_INPUTS,
    check_member_path,
    path_key,
    safe_file_name,
    workflow_use,
)


def test_every_folder_of_comfyui_is_known() -> None:
    upstream = Path(os.environ.get("COMFYUI_DIR") or PROJECT_ROOT / "comfyui" / "upstream") / "folder_paths.py"
    if not upstream.is_file():
        pytest.fail("ComfyUI is not here: run scripts/fetch-comfyui")
    theirs = set(re.findall(r'os\.path\.join\(models_dir, "(\w+)"\)', upstream.read_text()))
    assert theirs
    assert theirs <= MODEL_FOLDERS


def test_every_training_input_has_a_model_folder() -> None:
    assert set(TRAINING_INPUTS.values()) <= MODEL_FOLDERS
    assert list(TRAINING_INPUTS)[:2] == ["checkpoints", "loras"]
    assert len(set(TRAINING_INPUTS.values())) == len(TRAINING_INPUTS)


def test_every_folder_of_comfyui_can_be_filled() -> None:
    upstream = Path(os.environ.get("COMFYUI_DIR") or PROJECT_ROOT / "comfyui" / "upstream") / "folder_paths.py"
    if not upstream.is_file():
        pytest.fail("ComfyUI is not here: run scripts/fetch-comfyui")
    theirs = set(re.findall(r'folder_names_and_paths\["(\w+)"\] = ', upstream.read_text()))
    without_an_input = {"configs", "diffusers", "custom_nodes", "datasets"}
    assert theirs - without_an_input <= set(TRAINING_INPUTS.values())


@pytest.mark.parametrize("path", ["loras/a.safetensors", "loras/style/日本 x.safetensors", "vae/" + "v" * 255])
def test_good_paths(path: str) -> None:
    assert str(check_member_path(path)) == path


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("", "model folder and a file"),
        ("loras", "model folder and a file"),
        ("a.safetensors", "model folder and a file"),
        ("/loras/a", "empty part"),
        ("loras//a", "empty part"),
        ("loras/", "empty part"),
        ("loras/../a", "start with a dot"),
        ("../loras/a", "start with a dot"),
        ("./loras/a", "start with a dot"),
        ("loras/.hidden", "start with a dot"),
        ("loras/a.", "end with a dot"),
        ("loras/a ", "end with a dot"),
        ("loras\\a/b", "one of the characters"),
        ("loras/c:a", "one of the characters"),
        ("loras/a\0b", "control character"),
        ("loras/a\nb", "control character"),
        ("loras/\u202egnp.a", "control character"),
        ("loras/\ud800", "control character"),
        ("loras/" + "a" * 256, "longer than 255"),
        ("loras/" + "あ" * 86, "longer than 255"),
        ("loras/" + "a/" * 600 + "b", "longer than 1024"),
        ("custom_nodes/a.py", "no model folder"),
        ("Loras/a.safetensors", "no model folder"),
    ],
)
def test_bad_paths(path: str, word: str) -> None:
    with pytest.raises(WeightsError, match=word) as caught:
        check_member_path(path)
    assert caught.value.path == path


@given(st.text(max_size=400))
def test_a_safe_name_is_always_a_good_path_or_nothing(text: str) -> None:
    name = safe_file_name(text)
    if name:
        check_member_path(f"loras/{name}")
        assert safe_file_name(name) == name


@given(st.text(max_size=60))
def test_no_path_leads_out_of_the_models_folder(text: str) -> None:
    for path in (text, "loras/" + text):
        try:
            good = check_member_path(path)
        except WeightsError:
            continue
        assert Path(os.path.normpath(Path("/models") / good)).is_relative_to("/models")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.safetensors", "a.safetensors"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\a.ckpt", "a.ckpt"),
        ("..", ""),
        ("a:b?.bin", "a_b_.bin"),
        (" .a ", "a"),
        ("a\0\r\n.pt", "a.pt"),
        ("x" * 300 + ".safetensors", "x" * 243 + ".safetensors"),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_file_name(text) == name


def test_paths_that_some_disks_hold_as_one_have_one_key() -> None:
    assert path_key("loras/A.pt") == path_key("loras/a.pt")
    assert path_key("loras/e\u0301") == path_key("loras/\u00e9")
    assert path_key("loras/a") != path_key("loras/b")


def test_how_a_workflow_names_a_file() -> None:
    assert workflow_use("checkpoints/m.safetensors").endswith('CheckpointLoaderSimple.ckpt_name = "m.safetensors"')
    assert "embedding:bad hands in" in workflow_use("embeddings/bad hands.safetensors")
    assert "loads from sams" in workflow_use("sams/a.safetensors")
