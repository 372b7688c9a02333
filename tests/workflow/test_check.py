"""Every problem of a workflow at once, without ComfyUI; and nothing wrong where nothing is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.workflow.check import check, is_certain
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import parse_workflow

CLASSES = NodeClasses(
    {
        "Loader": {"input": {"required": {"ckpt_name": [["a.safetensors"], {}]}}, "output": ["MODEL", "CLIP"]},
        "Text": {
            "input": {
                "required": {"text": ["STRING", {}], "clip": ["CLIP"]},
                "optional": {"extra": ["INT", {"min": 0}]},
            },
            "output": ["CONDITIONING"],
        },
        "Sampler": {
            "input": {
                "required": {
                    "model": ["MODEL"],
                    "positive": ["CONDITIONING"],
                    "steps": ["INT", {"min": 1, "max": 100}],
                    "mode": ["COMBO", {"options": ["fast", "slow"]}],
                }
            },
            "output": ["LATENT"],
        },
        "Read": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}, "output": ["IMAGE"]},
        "Any": {"input": {"required": {"value": ["*"]}}, "output": ["*"]},
        "Grow": {"input": {"required": {"items": ["COMFY_AUTOGROW_V3", {}]}}, "output": ["IMAGE"]},
        "Union": {"input": {"required": {"value": ["IMAGE,LATENT"]}}, "output": [], "output_node": True},
        "Save": {"input": {"required": {"latent": ["LATENT"]}}, "output": [], "output_node": True},
    }
)


def good() -> dict[str, Any]:
    return {
        "1": {"class_type": "Loader", "inputs": {"ckpt_name": "a.safetensors"}},
        "2": {"class_type": "Text", "inputs": {"text": "a fox", "clip": ["1", 1]}},
        "3": {
            "class_type": "Sampler",
            "inputs": {"model": ["1", 0], "positive": ["2", 0], "steps": 4, "mode": "fast"},
            "_meta": {"title": "My sampler"},
        },
        "4": {"class_type": "Save", "inputs": {"latent": ["3", 0]}},
    }


def found(workflow: dict[str, Any]) -> list[str]:
    return [problem.text for problem in check(parse_workflow(json.dumps(workflow)), CLASSES)]


def with_input(node: str, name: str, value: Any) -> dict[str, Any]:
    workflow = good()
    workflow[node]["inputs"][name] = value
    return workflow


def test_a_good_workflow_has_no_problem() -> None:
    assert found(good()) == []


@pytest.mark.parametrize(
    ("node", "name", "value", "text"),
    [
        ("3", "steps", 0, "Node 3 'My sampler' (Sampler): steps is 0; it must be at least 1 and at most 100."),
        ("3", "steps", 101, "Node 3 'My sampler' (Sampler): steps is 101; it must be at least 1 and at most 100."),
        ("3", "steps", "many", "Node 3 'My sampler' (Sampler): steps is 'many', which is not INT."),
        ("2", "extra", -1, "Node 2 (Text): extra is -1; it must be at least 0."),
        (
            "3",
            "mode",
            "fats",
            "Node 3 'My sampler' (Sampler): mode is 'fats', which is not there; the nearest (of 2): fast.",
        ),
        (
            "1",
            "ckpt_name",
            "b.safetensors",
            "Node 1 (Loader): ckpt_name is 'b.safetensors', which is not there; the nearest (of 1): a.safetensors. "
            "Bake the file with the training input `checkpoints`, or give a link to it in place of its name.",
        ),
        (
            "3",
            "model",
            ["9", 0],
            "Node 3 'My sampler' (Sampler): model is linked to node 9, which is not in the workflow.",
        ),
        (
            "3",
            "model",
            ["1", 2],
            "Node 3 'My sampler' (Sampler): model is linked to output 2 of node 1, which has 2, counted from 0.",
        ),
        (
            "3",
            "model",
            ["1"],
            "Node 3 'My sampler' (Sampler): model is ['1']; a link is a list of a node id and an output number.",
        ),
        ("3", "model", ["1", 1], "Node 3 'My sampler' (Sampler): model takes MODEL, but node 1 gives CLIP."),
    ],
)
def test_one_problem_is_one_sentence(node: str, name: str, value: Any, text: str) -> None:
    assert found(with_input(node, name, value)) == [text]


def test_a_missing_input() -> None:
    workflow = good()
    del workflow["3"]["inputs"]["positive"]
    assert found(workflow) == [
        "Node 3 'My sampler' (Sampler): the input positive is missing; link it or give it a value."
    ]


def test_all_problems_come_at_once_in_the_order_of_the_nodes() -> None:
    workflow = with_input("3", "steps", 0)
    workflow["2"]["class_type"] = "Texts"
    workflow["5"] = {"class_type": "Savee", "inputs": {"latent": ["3", 0]}}
    texts = found(workflow)
    assert [text.split(" ")[1] for text in texts] == ["2", "3", "5"]
    assert "The nearest it has: Text." in texts[0]
    assert "The nearest it has: Save." in texts[2]


def test_no_output_node() -> None:
    workflow = good()
    del workflow["4"]
    assert found(workflow) == ["no node in it saves or shows anything; add an output node such as SaveImage."]


def test_a_loop_of_links_is_named_with_its_way() -> None:
    workflow = {
        "1": {"class_type": "Any", "inputs": {"value": ["2", 0]}},
        "2": {"class_type": "Any", "inputs": {"value": ["1", 0]}},
        "3": {"class_type": "Save", "inputs": {"latent": ["1", 0]}},
    }
    (text,) = found(workflow)
    assert "by 1 → 2 → 1;" in text


def test_nodes_that_no_output_needs_only_have_to_be_known() -> None:
    workflow = good()
    workflow["9"] = {"class_type": "Text", "inputs": {}}
    assert found(workflow) == []


@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("Union", {"value": ["3", 0]}),
        ("Union", {"value": ["7", 0]}),
        ("Union", {"value": ["8", 0]}),
    ],
)
def test_what_comfyui_lets_pass_is_no_problem(class_type: str, inputs: dict[str, Any]) -> None:
    workflow = good()
    workflow["5"] = {"class_type": class_type, "inputs": inputs}
    workflow["6"] = {"class_type": "Read", "inputs": {"image": "sub/not-in-the-list.png"}}
    workflow["7"] = {"class_type": "Any", "inputs": {"value": ["6", 0]}}
    workflow["8"] = {"class_type": "Grow", "inputs": {"items.item0": ["6", 0]}}
    assert found(workflow) == []


def test_a_value_alone_is_left_to_comfyui() -> None:
    (problem,) = check(parse_workflow(json.dumps(with_input("3", "steps", 0))), CLASSES)
    assert not is_certain(problem, CLASSES)
    (problem,) = check(parse_workflow(json.dumps(with_input("3", "model", ["9", 0]))), CLASSES)
    assert is_certain(problem, CLASSES)


@pytest.mark.parametrize(
    ("module", "certain"),
    [("nodes", True), ("comfy_extras.nodes_sd3", True), ("custom_nodes.some_pack", False), (None, False)],
)
def test_a_model_that_is_not_there_is_certain_for_comfyuis_own_loaders(module: str | None, certain: bool) -> None:
    names = {"ckpt_name": [["a.safetensors"]], "mode": [["fast"]]}
    loader = {"input": {"required": names}, "output": [], "output_node": True, "python_module": module}
    classes = NodeClasses({"Loader": loader})
    inputs = {"ckpt_name": "b.safetensors", "mode": "slow"}
    found = check(parse_workflow(json.dumps({"1": {"class_type": "Loader", "inputs": inputs}})), classes)
    assert [(problem.input_name, is_certain(problem, classes)) for problem in found] == [
        ("ckpt_name", certain),
        ("mode", False),
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.sampled_from(["1", "2", "3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from(["1", "2", "3", "4"]),
        st.fixed_dictionaries(
            {
                "class_type": st.sampled_from(["Loader", "Text", "Sampler", "Save", "Any", "Nope"]),
                "inputs": st.dictionaries(
                    st.sampled_from(["model", "positive", "steps", "mode", "latent", "value", "clip"]), VALUES
                ),
            }
        ),
        min_size=1,
    )
)
def test_whatever_the_inputs_hold_the_check_ends_with_a_list(workflow: dict[str, Any]) -> None:
    for problem in check(parse_workflow(json.dumps(workflow)), CLASSES):
        assert problem.text
