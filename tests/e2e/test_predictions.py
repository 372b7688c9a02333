"""Predictions through Cog's real predict server: pictures, bad input of every kind, and health after each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from PIL import Image

from comfyui.deadline import Deadline
from comfyui.engine.engine import LET_GO_S
from comfyui.errors import EngineError
from comfyui.local.cog_server import CogServer, file_of_data_uri
from comfyui.local.file_server import serve_files
from tests.e2e.conftest import READY_S, Served
from tests.parts import EMPTY_IMAGE, demo_files, example


def picture(predictor: Served, workflow: dict[str, Any], **inputs: Any) -> bytes:
    """The one file that a workflow makes; PNG and fixed seeds unless said otherwise."""
    inputs = {"output_format": "png", "randomise_seeds": False} | inputs
    (uri,) = predictor.output_of(workflow_json=json.dumps(workflow), **inputs)
    return file_of_data_uri(uri)


def pixels(file: bytes) -> bytes:
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB").tobytes()


def lora_example(**values: Any) -> dict[str, Any]:
    return example("txt2img_lora", width=64, height=64, **values)


def prompt_example(text: str) -> dict[str, Any]:
    workflow = lora_example(seed=5)
    workflow[workflow["6"]["inputs"]["positive"][0]]["inputs"]["text"] = text
    return workflow


def engines_of(server: CogServer) -> list[psutil.Process]:
    """ComfyUI's processes below a Cog server; one that has ended does not count, waited for or not."""
    engines = []
    for child in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("main.py" in part for part in child.cmdline()):
                engines.append(child)
    return engines


def engine_process(predictor: Served) -> psutil.Process:
    (engine,) = engines_of(predictor.server)
    return engine


def test_the_picture_follows_seed_prompt_and_lora_strength(predictor: Served) -> None:
    base = pixels(picture(predictor, prompt_example("a red fox")))
    assert pixels(picture(predictor, prompt_example("a red fox"))) == base
    assert pixels(picture(predictor, lora_example(seed=6))) != base
    assert pixels(picture(predictor, prompt_example("a blue whale"))) != base
    weak = {**prompt_example("a red fox")}
    weak["2"]["inputs"].update(strength_model=0.0, strength_clip=0.0)
    assert pixels(picture(predictor, weak)) != base


def test_a_real_png_of_the_size_asked_for(predictor: Served) -> None:
    with Image.open(io.BytesIO(picture(predictor, lora_example(seed=7)))) as image:
        assert (image.format, image.size) == ("PNG", (64, 64))


@pytest.mark.parametrize(("output_format", "pillow"), [("webp", "WEBP"), ("jpg", "JPEG"), ("png", "PNG")])
def test_output_format(predictor: Served, output_format: str, pillow: str) -> None:
    with Image.open(io.BytesIO(picture(predictor, EMPTY_IMAGE, output_format=output_format))) as image:
        assert image.format == pillow


def test_an_identical_second_run_returns_its_files_again(predictor: Served) -> None:
    workflow = lora_example(seed=11)
    assert picture(predictor, workflow) == picture(predictor, workflow)


def test_previews_come_on_request_also_when_they_are_cached(predictor: Served) -> None:
    workflow = {**EMPTY_IMAGE, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    error = predictor.error_of(workflow_json=json.dumps(workflow))
    assert "return_temp_files" in error
    for _ in range(2):
        assert len(predictor.output_of(workflow_json=json.dumps(workflow), return_temp_files=True)) == 1


def test_outputs_come_in_the_order_of_the_workflow(predictor: Served) -> None:
    def color(number: int) -> dict[str, Any]:
        return {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": number}}

    def save(node: str) -> dict[str, Any]:
        return {"class_type": "SaveImage", "inputs": {"images": [node, 0], "filename_prefix": "same"}}

    workflow = {"9": save("1"), "3": save("2"), "1": color(0xFF0000), "2": color(0x00FF00)}
    red, green = predictor.output_of(workflow_json=json.dumps(workflow), output_format="png")
    assert pixels(file_of_data_uri(red))[:3] == b"\xff\0\0"
    assert pixels(file_of_data_uri(green))[:3] == b"\0\xff\0"


def test_randomised_seeds_are_printed_and_make_the_same_picture_again(predictor: Served) -> None:
    workflow = example("tiny_sd3", seed=1)
    answer = predictor.call(workflow_json=json.dumps(workflow), output_format="png")
    (line,) = [line for line in answer["logs"].splitlines() if line.startswith("Seed: ")]
    seed = int(line.rsplit("= ", 1)[1])
    again = picture(predictor, example("tiny_sd3", seed=seed))
    assert file_of_data_uri(answer["output"][0]) == again or pixels(file_of_data_uri(answer["output"][0])) == pixels(
        again
    )


def test_comfyuis_own_lines_are_in_the_logs_of_the_prediction(predictor: Served) -> None:
    answer = predictor.call(workflow_json=json.dumps(EMPTY_IMAGE))
    assert "[comfyui] [INFO] got prompt" in answer["logs"]


UI_FORMAT = {
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "inputs": [],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": [16, 8, 1, 0xFF8000],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "outputs": [],
            "widgets_values": ["orange"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}


def test_a_workflow_as_comfyui_saves_it_runs_too(predictor: Served) -> None:
    with Image.open(io.BytesIO(picture(predictor, UI_FORMAT))) as image:
        assert image.size == (16, 8)
        assert image.getpixel((0, 0)) == (255, 128, 0)


def test_a_workflow_and_its_media_may_be_named_by_url(predictor: Served, tmp_path: Path) -> None:
    Image.new("RGB", (24, 16), (1, 2, 3)).save(tmp_path / "photo.png")
    with serve_files({"photo.png": tmp_path / "photo.png", "w.json": tmp_path / "w.json"}) as urls:
        workflow = {"1": {"class_type": "LoadImage", "inputs": {"image": urls["photo.png"]}}, "2": EMPTY_IMAGE["2"]}
        (tmp_path / "w.json").write_text(json.dumps(workflow))
        (uri,) = predictor.output_of(workflow_json=urls["w.json"], output_format="png")
    assert pixels(file_of_data_uri(uri))[:3] == b"\x01\x02\x03"


def test_weights_may_be_named_by_link_and_are_kept_for_the_next_time(
    predictor: Served, weight_urls: dict[str, str]
) -> None:
    by_name = pixels(picture(predictor, lora_example(seed=21)))
    url = weight_urls["loras/tiny-sd15-lora.safetensors"]
    workflow = json.dumps(lora_example(seed=21, lora_name=f"{url}?secret=1"))
    inputs = {"huggingface_token": "hf_secret", "output_format": "png", "randomise_seeds": False}
    for said in ("fetched in", "was there already"):
        answer = predictor.call(workflow_json=workflow, **inputs)
        assert answer["status"] == "succeeded", answer
        made = file_of_data_uri(answer["output"][0])
        assert pixels(made) == by_name
        with Image.open(io.BytesIO(made)) as image:
            assert json.loads(image.info["prompt"])["2"]["inputs"]["lora_name"] == "tiny-sd15-lora.safetensors"
        (line,) = [line for line in answer["logs"].splitlines() if "input lora_name: by-link/" in line]
        assert said in line
        assert "secret" not in answer["logs"]


def test_a_link_to_weights_that_leads_nowhere_names_its_node(predictor: Served, weight_urls: dict[str, str]) -> None:
    url = weight_urls["loras/tiny-sd15-lora.safetensors"].replace("lora.safetensors", "gone.safetensors")
    error = predictor.error_of(workflow_json=json.dumps(lora_example(seed=21, lora_name=url)))
    assert "(LoraLoader), input lora_name" in error
    assert "404" in error


def test_progress_and_metrics_say_where_a_run_is_and_where_its_time_went(predictor: Served) -> None:
    answer = predictor.call(workflow_json=json.dumps(example("tiny_sd3", seed=time.time_ns() % 2**32)))
    lines = [line for line in answer["logs"].splitlines() if re.match(r"\s*\d+%\|", line)]
    assert lines[-1].startswith("100%|██████████| 7/7")
    assert any("Sampler" in line for line in lines)
    assert answer["metrics"]["execution_seconds"] > 0
    assert set(answer["metrics"]["node_seconds"]) <= {"1", "3", "4", "5", "6", "7", "8"}


def test_a_timeout_stops_the_workflow_and_the_next_prediction_is_normal(predictor: Served) -> None:
    workflow = example("tiny_sd3", steps=10_000, seed=time.time_ns() % 2**32, width=256, height=256)
    error = predictor.error_of(workflow_json=json.dumps(workflow), randomise_seeds=False, timeout=3)
    assert "Running the workflow took longer than the 3 s it was given" in error
    assert picture(predictor, EMPTY_IMAGE)


def test_force_reset_cache_still_makes_the_picture(predictor: Served) -> None:
    assert picture(predictor, lora_example(seed=12), force_reset_cache=True)


def test_an_input_file_is_there_under_both_names(predictor: Served, tmp_path: Path) -> None:
    Image.new("RGB", (24, 16), (1, 2, 3)).save(tmp_path / "my photo.png")
    for name in ("input.png", "my photo.png"):
        workflow = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}, "2": EMPTY_IMAGE["2"]}
        file = picture(predictor, workflow, input_file=str(tmp_path / "my photo.png"))
        assert pixels(file)[:3] == b"\x01\x02\x03"


def _cut_checkpoint(predictor: Served) -> dict[str, Any]:
    """A checkpoint cut at half, put behind the product's back: no restore would let it in."""
    models = Path(psutil.Process(predictor.server.pid).environ()["MODELS_DIR"])
    whole = demo_files("checkpoints/tiny-sd3-notext")["checkpoints/tiny-sd3-notext.safetensors"].read_bytes()
    (models / "checkpoints" / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return example("tiny_sd3", ckpt_name="cut.safetensors")


def _without(workflow: dict[str, Any], node: str, **inputs: Any) -> dict[str, Any]:
    return {**workflow, node: {**workflow[node], "inputs": {**workflow[node]["inputs"], **inputs}}}


BAD_INPUTS: dict[str, tuple[Any, list[str]]] = {
    "nothing": ("", ["workflow_json is empty", "Export (API)"]),
    "malformed JSON": ('{"1": {"class_type": }', ["not valid JSON", "line 1, column 22"]),
    "a UI format in which nothing runs": ({"nodes": [], "links": []}, ["Nothing in this workflow runs"]),
    "a UI format with a node of an unknown class": (
        {"nodes": [{"id": 1, "type": "EmptyImages", "inputs": [], "outputs": []}], "links": []},
        ["EmptyImages"],
    ),
    "two problems at once": (
        {**EMPTY_IMAGE, "3": {"class_type": "Nope", "inputs": {}}, "4": {"class_type": "Nopes", "inputs": {}}},
        ["2 problems", "Node 3 (Nope)", "Node 4 (Nopes)"],
    ),
    "an unknown class": (
        {**EMPTY_IMAGE, "1": {"class_type": "EmptyImages", "inputs": {}}},
        ["Node 1 (EmptyImages)", "does not have", "EmptyImage"],
    ),
    "a model that is not there": (
        lora_example(ckpt_name="tiny-sd51.safetensors"),
        ["ckpt_name is 'tiny-sd51.safetensors'", "tiny-sd15.safetensors", "training input `checkpoints`"],
    ),
    "an image that is not there": (
        {"1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}, "2": EMPTY_IMAGE["2"]},
        ["image is 'cat.png'", "input_file"],
    ),
    "a value out of range": (_without(EMPTY_IMAGE, "1", width=0), ["Node 1 'Orange' (EmptyImage)", "at least 1"]),
    "a dangling link": (_without(EMPTY_IMAGE, "2", images=["7", 0]), ["linked to node 7", "not in the workflow"]),
    "no output node": ({"1": EMPTY_IMAGE["1"]}, ["SaveImage"]),
    "a checkpoint cut at half": (_cut_checkpoint, ["CheckpointLoaderSimple", "SafetensorError", "bake it again"]),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_message_and_the_next_prediction_succeeds(predictor: Served, case: str) -> None:
    bad, said = BAD_INPUTS[case]
    workflow = bad(predictor) if callable(bad) else bad
    error = predictor.error_of(workflow_json=workflow if isinstance(workflow, str) else json.dumps(workflow))
    for words in said:
        assert words in error
    # Cog may still be closing the prediction when its answer is here.
    assert predictor.server.health()["status"] in ("READY", "BUSY")
    assert picture(predictor, EMPTY_IMAGE)


def test_a_wrong_input_name_names_the_right_one(predictor: Served) -> None:
    error = predictor.error_of(workflow="{}")
    assert "no input 'workflow'; did you mean 'workflow_json'?" in error


def test_a_bad_output_format_is_refused_before_anything_runs(predictor: Served) -> None:
    error = predictor.error_of(workflow_json=json.dumps(EMPTY_IMAGE), output_format="gif")
    assert "output_format is 'gif'; it is one of webp, jpg, png" in error


def test_a_cancel_ends_the_prediction_and_the_next_is_normal(predictor: Served) -> None:
    url = predictor.server.base_url
    workflow = example("tiny_sd3", steps=10_000, seed=time.time_ns() % 2**32, width=256, height=256)
    body = {"input": {"workflow_json": json.dumps(workflow), "randomise_seeds": False}}
    got: list[dict[str, Any]] = []

    def send() -> None:
        # Cog frees the slot of the prediction before a moment after its answer.
        while (answer := requests.put(f"{url}/predictions/cancel-me", json=body, timeout=60)).status_code == 409:
            time.sleep(0.05)
        got.append(answer.json())

    put = threading.Thread(target=send)
    mark = len(predictor.lines)
    put.start()
    end = time.monotonic() + 60
    while not any("Sampl" in line or "/10000" in line for line in predictor.lines[mark:]):
        assert time.monotonic() < end, "the sampler did not start"
        time.sleep(0.05)
    start = time.monotonic()
    requests.post(f"{url}/predictions/cancel-me/cancel", timeout=10)
    put.join(timeout=30)
    assert got[0]["status"] == "canceled"
    assert time.monotonic() - start < LET_GO_S, "it let go of the prompt, and was not ended"
    assert picture(predictor, EMPTY_IMAGE)


def test_a_killed_engine_is_back_for_the_next_prediction(predictor: Served) -> None:
    engine = engine_process(predictor)
    os.kill(engine.pid, signal.SIGKILL)
    assert picture(predictor, EMPTY_IMAGE)
    assert engine_process(predictor).pid != engine.pid
    assert picture(predictor, lora_example(seed=13))


def test_nothing_of_a_run_is_left_in_comfyuis_folders(predictor: Served) -> None:
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    picture(predictor, {**EMPTY_IMAGE, "3": preview})
    predictor.error_of(workflow_json=json.dumps({"1": EMPTY_IMAGE["1"], "2": preview}))
    data = Path(psutil.Process(predictor.server.pid).environ()["DATA_DIR"])
    (run_dir,) = (data / "runs").iterdir()
    assert list((run_dir / "output").iterdir()) == []
    assert [path for path in (run_dir / "temp").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("fault", ["cut", "flipped", "not a tar"])
def test_bad_weights_fail_the_setup_with_the_reason_and_leave_nothing(
    baked_tar: tuple[Path, dict[str, Any]], tmp_path: Path, fault: str
) -> None:
    data = bytearray(baked_tar[0].read_bytes()) if fault != "not a tar" else bytearray(b"<html>Sign in</html>")
    if fault == "cut":
        del data[len(data) // 2 :]
    elif fault == "flipped":
        data[len(data) // 2] ^= 1
    bad = tmp_path / "weights.tar"
    bad.write_bytes(data)
    environ = {"COG_WEIGHTS": str(bad), "MODELS_DIR": str(tmp_path / "models"), "DATA_DIR": str(tmp_path / "data")}
    with CogServer("predict", environ=environ, sink=lambda _line: None) as server:
        with pytest.raises(EngineError) as failure:
            server.wait_ready(Deadline(READY_S, "The predictor's setup"))
        assert engines_of(server) == []
    said = {"cut": "tiny-sd15.safetensors", "flipped": "Tried: the tar (expected", "not a tar": "HTML"}[fault]
    assert said.lower() in str(failure.value).lower()
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []


def test_a_damaged_tar_heals_from_the_links_it_was_baked_from(
    baked_tar: tuple[Path, dict[str, Any]], weight_urls: dict[str, str], tmp_path: Path
) -> None:
    data = bytearray(baked_tar[0].read_bytes())
    data[len(data) // 2] ^= 1
    bad = tmp_path / "weights.tar"
    bad.write_bytes(data)
    environ = {
        "ALLOW_PRIVATE_URLS": "1",
        "COG_WEIGHTS": str(bad),
        "MODELS_DIR": str(tmp_path / "models"),
        "DATA_DIR": str(tmp_path / "data"),
    }
    with CogServer("predict", environ=environ, sink=lambda _line: None) as server:
        server.wait_ready(Deadline(READY_S, "The predictor's setup"))
    for path, original in demo_files("checkpoints/tiny-sd15", "loras/tiny-sd15-lora").items():
        assert path in weight_urls
        assert (tmp_path / "models" / path).read_bytes() == original.read_bytes()


def test_a_server_that_is_killed_leaves_no_comfyui_behind(tmp_path: Path) -> None:
    environ = {"MODELS_DIR": str(tmp_path / "models"), "DATA_DIR": str(tmp_path / "data")}
    with CogServer("predict", environ=environ, sink=lambda _line: None) as server:
        server.wait_ready(Deadline(READY_S, "The predictor's setup"))
        family = psutil.Process(server.pid).children(recursive=True)
        os.kill(server.pid, signal.SIGKILL)
        gone, left = psutil.wait_procs(family, timeout=10)
    assert left == []
    assert gone
