"""Nodes that take ComfyUI down, full memory, full disks: the cause is named, and the next prediction is normal."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from comfyui.deadline import Deadline
from comfyui.engine.engine import LET_GO_S
from comfyui.local.cog_server import file_of_data_uri
from tests.e2e.conftest import READY_S, Served
from tests.e2e.test_predictions import engine_process
from tests.parts import EMPTY_IMAGE


def with_fault(how: str, *, times: int = 1_000_000, counter: Path | None = None) -> dict[str, Any]:
    """A small picture that goes through a node with a fault; `counter` makes it happen `times` times only."""
    inputs = {"image": ["1", 0], "how": how, "times": times, "counter": str(counter or ""), "mark": time.time_ns()}
    fault = {"class_type": "TestFault", "inputs": inputs, "_meta": {"title": "Trouble"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "after"}}
    return {"1": EMPTY_IMAGE["1"], "5": fault, "2": save}


def normal(server: Served) -> None:
    """The next prediction works."""
    (uri,) = server.output_of(workflow_json=json.dumps(EMPTY_IMAGE), output_format="png")
    assert file_of_data_uri(uri).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", ["Node 5 'Trouble' (TestFault) was the last that was seen at work", "SystemExit: 3. Does a node"]),
        # A sudden death comes before the word that the node has begun.
        ("os_exit", ["ComfyUI ended while it ran the workflow", "with exit code 4"]),
        ("abort", ["ComfyUI ended while it ran the workflow", "killed by signal 6"]),
        ("orphan", ["ComfyUI ended while it ran the workflow", "with exit code 4"]),
    ],
)
def test_a_node_that_takes_comfyui_down_fails_its_prediction_and_the_next_prediction_is_normal(
    busy_predictor: Served, tmp_path: Path, how: str, said: list[str]
) -> None:
    counter = tmp_path / "counter"
    start = time.monotonic()
    error = busy_predictor.error_of(workflow_json=json.dumps(with_fault(how, counter=counter)))
    assert time.monotonic() - start < READY_S, "long before stall_timeout"
    for words in said:
        assert words in error
    assert len(counter.read_bytes()) == 1, "it would do it again"
    normal(busy_predictor)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("gpu_memory", "The GPU has too little memory for this"),
        ("memory", "The machine has too little memory (RAM)"),
        ("gpu_fault", "The GPU itself failed"),
        ("disk_full", "The machine's disk is full"),
    ],
)
def test_what_the_machine_lacks_is_named(busy_predictor: Served, how: str, said: str) -> None:
    error = busy_predictor.error_of(workflow_json=json.dumps(with_fault(how)))
    assert "Node 5 'Trouble' (TestFault) failed: " in error
    assert said in error
    normal(busy_predictor)


@pytest.mark.parametrize("how", ["gpu_memory", "memory"])
def test_out_of_memory_is_tried_once_more_with_all_models_unloaded(
    busy_predictor: Served, tmp_path: Path, how: str
) -> None:
    counter = tmp_path / "counter"
    answer = busy_predictor.call(workflow_json=json.dumps(with_fault(how, times=1, counter=counter)))
    assert answer["status"] == "succeeded", answer
    assert "Out of memory, so all models are unloaded; running it once more." in answer["logs"]
    counter.unlink()
    busy_predictor.error_of(workflow_json=json.dumps(with_fault(how, counter=counter)))
    assert len(counter.read_bytes()) == 2


def test_other_failures_are_not_tried_again(busy_predictor: Served, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    busy_predictor.error_of(workflow_json=json.dumps(with_fault("disk_full", counter=counter)))
    assert len(counter.read_bytes()) == 1


def test_a_gpu_that_failed_gets_a_new_comfyui(busy_predictor: Served) -> None:
    before = engine_process(busy_predictor).pid
    busy_predictor.error_of(workflow_json=json.dumps(with_fault("gpu_fault")))
    normal(busy_predictor)
    assert engine_process(busy_predictor).pid != before


def test_a_comfyui_that_takes_no_prompt_up_is_replaced(busy_predictor: Served) -> None:
    """It answers all questions, so nothing else shows it."""
    before = engine_process(busy_predictor).pid
    assert busy_predictor.output_of(workflow_json=json.dumps(with_fault("stuck")))
    error = busy_predictor.error_of(workflow_json=json.dumps(EMPTY_IMAGE), stall_timeout=int(LET_GO_S) + 2)
    assert "any sign of life of ComfyUI took longer than the 10 s" in error
    normal(busy_predictor)
    assert engine_process(busy_predictor).pid != before


def until_ready(server: Served) -> list[str]:
    """What the health check says, again and again, until it says READY."""
    deadline = Deadline(READY_S, "Bringing ComfyUI back")
    seen = [server.server.health()["status"]]
    while seen[-1] != "READY":
        deadline.check()
        time.sleep(0.1)
        seen.append(server.server.health()["status"])
    return seen


def test_health_tells_the_truth_and_brings_a_dead_comfyui_back(busy_predictor: Served) -> None:
    server = busy_predictor.server
    assert server.health()["status"] == "READY"
    os.kill(engine_process(busy_predictor).pid, signal.SIGKILL)
    assert "UNHEALTHY" in until_ready(busy_predictor)
    normal(busy_predictor)


def test_a_comfyui_that_hangs_while_idle_is_replaced(busy_predictor: Served) -> None:
    before = engine_process(busy_predictor)
    os.kill(before.pid, signal.SIGSTOP)
    assert busy_predictor.server.health()["status"] == "UNHEALTHY"
    normal(busy_predictor)
    assert engine_process(busy_predictor).pid != before.pid


def test_health_alone_replaces_a_comfyui_that_hangs_while_idle(busy_predictor: Served) -> None:
    before = engine_process(busy_predictor)
    os.kill(before.pid, signal.SIGSTOP)
    assert "UNHEALTHY" in until_ready(busy_predictor)
    assert engine_process(busy_predictor).pid != before.pid
    normal(busy_predictor)
