"""scripts/workflow as people type it, from another folder than the project's."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comfyui.settings import PROJECT_ROOT
from tests.parts import EMPTY_IMAGE
from tests.workflow.convert_parts import OBJECT_INFO, converted, definition, io, link, node, out, save, slot, workflow

LIMIT_S = 120

LOADER = node(1, "Loader", ["a.ckpt"], outputs=[out("CLIP", 1)]) | {
    "properties": {"models": [{"name": "a.ckpt", "url": "https://example.org/a.ckpt", "directory": "checkpoints"}, 5]}
}
UI = workflow(
    [
        LOADER,
        node(2, "Box", ["a {cat}"], outputs=[out("IMAGE", 2)]),
        save(3, 2, "cats/x"),
        node(4, "Values", [1.5, 2.5]),
        node(5, "LoadImage", ["cat.png", "image"]),
        node(6, "Note", ["hello"]),
    ],
    [[2, 2, 0, 3, 0, "IMAGE"]],
    definition(
        "Box",
        [
            node(9, "Text", ["inner"], title="Prompt", inputs=[slot("text", "STRING", 1, widget=True)]),
            node(10, "Picky", [7], outputs=[out("IMAGE", 2)]),
        ],
        [link(1, -10, 0, 9, 0), link(2, 10, 0, -20, 0)],
        inputs=[io("text", "STRING", 1)],
        outputs=[io("image", "IMAGE", 2)],
    ),
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a workflow in UI format and an /object_info, plain and packed."""
    (tmp_path / "ui.json").write_text(json.dumps(UI), "utf-8")
    (tmp_path / "info.json").write_text(json.dumps(OBJECT_INFO), "utf-8")
    (tmp_path / "info.json.gz").write_bytes(gzip.compress(json.dumps(OBJECT_INFO).encode()))
    return tmp_path


def script(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT_ROOT / "scripts" / "workflow"), *arguments]
    env = {**os.environ, "PYTHON": sys.executable, **environ}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.parametrize("info", ["info.json", "info.json.gz"])
def test_convert_prints_the_api_format_and_nothing_else(here: Path, info: str) -> None:
    done = script("convert", "ui.json", "--object-info", info, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == converted(UI)


def test_convert_leaves_the_api_format_as_it_is(here: Path) -> None:
    (here / "api.json").write_text(json.dumps(converted(UI)), "utf-8")
    done = script("convert", "api.json", cwd=here)
    assert (done.returncode, json.loads(done.stdout)) == (0, converted(UI))


@pytest.mark.parametrize("wrap", [lambda text: f"\ufeff{text}", json.dumps], ids=["byte order mark", "escaped"])
def test_convert_reads_what_a_prediction_reads(here: Path, wrap: Callable[[str], str]) -> None:
    (here / "sent.json").write_text(wrap(json.dumps(UI)), "utf-8")
    done = script("convert", "sent.json", "--object-info", "info.json", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == converted(UI)


def test_describe_says_what_a_person_wants_to_know(here: Path) -> None:
    done = script("describe", "ui.json", "--object-info", "info.json", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "6 nodes:\n"
        "  1 Loader (Load)\n"
        "  3 SaveImage\n"
        "  4 Values\n"
        "  5 LoadImage\n"
        "  2:9 Text (Prompt)\n"
        "  2:10 Picky\n"
        "\n"
        "Models needed:\n"
        "  a.ckpt  ← 1.ckpt_name of Loader\n"
        "    checkpoints https://example.org/a.ckpt\n"
        "\n"
        "Inputs you may want to change:\n"
        '  3.filename_prefix = "cats/x"  (SaveImage)\n'
        '  5.image = "cat.png"  (LoadImage)\n'
        '  2:9.text = "a {cat}"  (Prompt)\n'
        "\n"
        "Outputs:\n"
        "  3 SaveImage  → cats/x…\n"
    )


def test_describe_of_the_api_format_needs_no_object_info(tmp_path: Path) -> None:
    done = script("describe", str(PROJECT_ROOT / "examples" / "workflows" / "txt2img_lora.json"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tiny-sd15-lora.safetensors  ← 2.lora_name of LoraLoader" in done.stdout
    assert "6.seed = 42" in done.stdout
    assert "8 SaveImage (Save picture)" in done.stdout.partition("Outputs:")[2]


def test_describe_shortens_long_texts_and_says_when_there_is_nothing(tmp_path: Path) -> None:
    api = {"1": {"class_type": "Text", "inputs": {"text": "x" * 500, "image": ""}}}
    (tmp_path / "api.json").write_text(json.dumps(api), "utf-8")
    done = script("describe", "api.json", cwd=tmp_path)
    assert max(map(len, done.stdout.splitlines())) < 120
    assert "none that is named by a file" in done.stdout
    assert "none: the workflow saves and shows nothing" in done.stdout


def refused(content: Any, here: Path, *, info: str = "info.json") -> str:
    (here / "bad.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    done = script("convert", "bad.json", "--object-info", info, cwd=here)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (workflow([node(1, "Custom", title="Mine")]), "node 1 'Mine' (Custom)"),
        (workflow([save(2, 9)]), "Node 2 (SaveImage) has an input 'images' with the link 9"),
        (workflow([node(1, "Note", ["x"])]), "nothing to run"),
        ({"nodes": [1]}, "a node should be an object"),
        ("{not json", "not valid JSON"),
        ("", "empty"),
        ("[" * 100_000, "nested too deeply"),
        ({}, "no nodes"),
    ],
)
def test_what_cannot_be_converted_is_said_on_standard_error(here: Path, content: Any, reason: str) -> None:
    assert reason in refused(content, here)


@pytest.mark.parametrize(
    ("name", "content"), [("x.json", b"[]"), ("x.json", b"{"), ("x.gz", b"\x1f\x8bbroken"), ("x.json", b'{"a": 5}')]
)
def test_a_file_that_is_no_object_info_is_named(here: Path, name: str, content: bytes) -> None:
    (here / name).write_bytes(content)
    assert name in refused(UI, here, info=name)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_is_not_there_is_named(here: Path, name: str) -> None:
    done = script("describe", name, cwd=here)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(here) in done.stderr


@pytest.mark.parametrize("arguments", [[], ["convert"], ["translate", "ui.json"]])
def test_wrong_usage_is_explained(here: Path, arguments: list[str]) -> None:
    done = script(*arguments, cwd=here)
    assert done.returncode == 2
    assert "usage: scripts/workflow" in done.stderr


def test_without_object_info_our_own_comfyui_is_asked(tmp_path: Path) -> None:
    ui = workflow(
        [
            node(1, "EmptyImage", [32, 32, 1, 0xFF8000], outputs=[out("IMAGE", 1)], title="Orange"),
            node(2, "SaveImage", ["orange"], inputs=[slot("images", "IMAGE", 1)]),
        ],
        [[1, 1, 0, 2, 0, "IMAGE"]],
    )
    (tmp_path / "ui.json").write_text(json.dumps(ui), "utf-8")
    done = script("convert", "ui.json", cwd=tmp_path, DATA_DIR=str(tmp_path / "data"), COMFYUI_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert {key: entry["inputs"] for key, entry in made.items()} == {
        key: entry["inputs"] for key, entry in EMPTY_IMAGE.items()
    }


def test_check_prints_every_problem_and_says_so_in_its_exit_code(here: Path) -> None:
    prompt = {
        "1": {"class_type": "Loader", "inputs": {"ckpt_name": "b.ckpt"}},
        "2": {"class_type": "Nope", "inputs": {}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}},
    }
    (here / "bad.json").write_text(json.dumps(prompt), "utf-8")
    done = script("check", "bad.json", "--object-info", "info.json", cwd=here)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].split(" is of")[0] for line in lines] == ["Node 2 (Nope)", "Node 3 (SaveImage)"]
    assert "linked to node 9, which is not in the workflow" in lines[1]


def test_check_takes_the_ui_format_and_weights_of_a_models_folder(here: Path) -> None:
    prompt = {
        "1": {"class_type": "Loader", "inputs": {"ckpt_name": "sub/b.ckpt"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    info = {
        "Loader": {"input": {"required": {"ckpt_name": [["a.ckpt"]]}}, "output": ["IMAGE"]},
        "SaveImage": {"input": {"required": {"images": ["IMAGE"]}}, "output": [], "output_node": True},
    }
    (here / "own.json").write_text(json.dumps(prompt), "utf-8")
    (here / "own-info.json").write_text(json.dumps(info), "utf-8")
    missing = script("check", "own.json", "--object-info", "own-info.json", cwd=here)
    assert (missing.returncode, "ckpt_name is 'sub/b.ckpt', which is not there" in missing.stdout) == (1, True)
    (here / "models" / "checkpoints" / "sub").mkdir(parents=True)
    (here / "models" / "checkpoints" / "sub" / "b.ckpt").touch()
    there = script("check", "own.json", "--object-info", "own-info.json", "--models", "models", cwd=here)
    assert (there.returncode, there.stdout) == (0, "No problem found.\n")
    assert script("check", "ui.json", "--object-info", "info.json", cwd=here).returncode in (0, 1)


def test_a_link_to_weights_is_no_problem_and_a_model_that_is_needed(here: Path) -> None:
    link = "https://civitai.com/models/1234"
    prompt = {
        "1": {"class_type": "Lora", "inputs": {"lora_name": link, "sampler_name": link}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    names = {"lora_name": [["a.safetensors"]], "sampler_name": [["euler"]]}
    info = {
        "Lora": {"input": {"required": names}, "output": ["IMAGE"]},
        "SaveImage": {"input": {"required": {"images": ["IMAGE"]}}, "output": [], "output_node": True},
    }
    (here / "link.json").write_text(json.dumps(prompt), "utf-8")
    (here / "link-info.json").write_text(json.dumps(info), "utf-8")
    checked = script("check", "link.json", "--object-info", "link-info.json", cwd=here)
    assert checked.returncode == 1
    assert [line.split(" is ")[0] for line in checked.stdout.splitlines()] == ["Node 1 (Lora): sampler_name"]
    described = script("describe", "link.json", cwd=here)
    assert f"  {link}  ← 1.lora_name of Lora" in described.stdout
