"""What a person typed on the command line, put into the project's own example workflows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui.errors import RequestError
from comfyui.local.demo.workflow import with_prompt, with_seed, with_values
from comfyui.settings import PROJECT_ROOT
from comfyui.workflow.parse import Workflow, parse_workflow


def workflow_of(nodes: dict[str, dict[str, Any]]) -> Workflow:
    return parse_workflow(json.dumps({key: {"class_type": "A", "inputs": inputs} for key, inputs in nodes.items()}))


def example(name: str) -> Workflow:
    return parse_workflow((PROJECT_ROOT / "examples" / "workflows" / f"{name}.json").read_text("utf-8"))


def inputs_named(workflow: Workflow, name: str) -> list[Any]:
    return [node.inputs[name] for node in workflow.nodes.values() if name in node.inputs]


@pytest.mark.parametrize("name", ["txt2img", "txt2img_lora", "tiny_sd3"])
def test_the_examples_of_the_quickstart_take_a_prompt_a_seed_and_a_size(name: str) -> None:
    before = example(name)
    after = with_seed(with_prompt(with_values(before, {"width": 128, "height": 64}), "a blue cat"), 7)
    assert inputs_named(after, "width") == [128]
    assert inputs_named(after, "height") == [64]
    assert inputs_named(after, "seed") == [7]
    assert inputs_named(after, "text").count("a blue cat") == 1
    assert sorted(set(inputs_named(before, "text")) - set(inputs_named(after, "text"))) == ["a red fox in the snow"]
    assert list(after.nodes) == list(before.nodes)
    assert inputs_named(before, "width") != [128]


def test_values_go_into_every_node_that_has_the_input_and_into_no_link() -> None:
    before = workflow_of({"1": {"width": 1}, "2": {"width": ["1", 0]}, "3": {"width": 2, "x": None}, "4": {}})
    after = with_values(before, {"width": 9})
    assert [node.inputs for node in after.nodes.values()] == [
        {"width": 9},
        {"width": ["1", 0]},
        {"width": 9, "x": None},
        {},
    ]


def test_a_value_without_a_place_is_refused_by_name() -> None:
    with pytest.raises(RequestError) as caught:
        with_values(example("txt2img"), {"width": 64, "lora_name": "a.safetensors"})
    assert str(caught.value) == "The workflow has no node with an input 'lora_name' to set."
    with pytest.raises(RequestError):
        with_values(workflow_of({"1": {"width": ["2", 0]}}), {"width": 64})


def test_the_prompt_finds_its_way_back_through_other_nodes() -> None:
    workflow = workflow_of(
        {
            "1": {"text": "old"},
            "2": {"conditioning": ["1", 0], "strength": 1.0},
            "3": {"positive": ["2", 0], "negative": ["5", 0]},
            "4": {"positive": ["3", 0]},
            "5": {"text": "bad"},
        }
    )
    after = with_prompt(workflow, "new")
    assert [after.nodes[node_id].inputs["text"] for node_id in ("1", "5")] == ["new", "bad"]


@pytest.mark.parametrize(
    "nodes",
    [
        {"1": {"text": "not linked"}},
        {"1": {"positive": ["77", 0]}},
        {"1": {"positive": ["2", 0]}, "2": {"text": ["3", 0]}, "3": {}},
        {"1": {"positive": ["2", 0]}, "2": {"conditioning": ["1", 0]}},
        {"1": {"positive": "words"}},
        {"1": {"positive": []}},
    ],
    ids=["no sampler", "dangling", "text is a link", "circle", "no link", "empty link"],
)
def test_a_prompt_without_a_place_is_refused(nodes: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(RequestError, match="no text node behind a sampler's `positive`"):
        with_prompt(workflow_of(nodes), "new")


def test_a_seed_goes_into_every_seed_input_and_nowhere_else() -> None:
    workflow = workflow_of(
        {"1": {"seed": 1}, "2": {"noise_seed": 2, "seed": ["1", 0]}, "3": {"rand_seed": 3, "steps": 4}}
    )
    after = with_seed(workflow, 42)
    assert [node.inputs for node in after.nodes.values()] == [
        {"seed": 42},
        {"noise_seed": 42, "seed": ["1", 0]},
        {"rand_seed": 42, "steps": 4},
    ]
