"""The graph behind scripts/generate; ComfyUI runs it in tests/e2e/test_generate.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from comfyui.local.generate.workflow import Beginning, Lora, Picture, fitted_size, picture_workflow
from comfyui.workflow.parse import Node, Workflow, workflow_of

PICTURE = Picture(
    prompt="a fox",
    negative="blurry",
    checkpoint="my.safetensors",
    loras=(Lora("a.safetensors", 0.8), Lora("https://a.b/c", -1.0)),
    seed=7,
    steps=28,
    cfg=6.5,
    sampler="euler_ancestral",
    scheduler="normal",
    width=832,
    height=1216,
    batch=3,
)


def nodes_of(workflow: Workflow, class_type: str) -> list[Node]:
    return [node for node in workflow.nodes.values() if node.class_type == class_type]


def behind(workflow: Workflow, link: Any) -> Node:
    return workflow.nodes[link[0]]


def test_every_link_leads_to_a_node_that_stands_before_it() -> None:
    for picture in (PICTURE, replace(PICTURE, beginning=Beginning("input.png", 0.5)), replace(PICTURE, loras=())):
        workflow = picture_workflow(picture)
        assert workflow_of(workflow.prompt()) == workflow
        seen: set[str] = set()
        for node in workflow.nodes.values():
            assert {value[0] for value in node.inputs.values() if isinstance(value, list)} <= seen
            seen.add(node.id)


def test_loras_are_applied_in_their_order_to_model_and_text_encoder() -> None:
    workflow = picture_workflow(PICTURE)
    (sampler,) = nodes_of(workflow, "KSampler")
    last = behind(workflow, sampler.inputs["model"])
    first = behind(workflow, last.inputs["model"])
    assert [node.inputs["lora_name"] for node in (first, last)] == ["a.safetensors", "https://a.b/c"]
    assert [node.inputs["strength_model"] for node in (first, last)] == [0.8, -1.0]
    assert [node.inputs["strength_clip"] for node in (first, last)] == [0.8, -1.0]
    assert behind(workflow, first.inputs["model"]).inputs == {"ckpt_name": "my.safetensors"}
    assert last.inputs["clip"] == [first.id, 1]
    for text in nodes_of(workflow, "CLIPTextEncode"):
        assert text.inputs["clip"] == [last.id, 1]


def test_what_was_asked_for_is_in_the_sampler_and_behind_it() -> None:
    workflow = picture_workflow(PICTURE)
    (sampler,) = nodes_of(workflow, "KSampler")
    plain = {name: value for name, value in sampler.inputs.items() if not isinstance(value, list)}
    assert plain == {
        "seed": 7,
        "steps": 28,
        "cfg": 6.5,
        "sampler_name": "euler_ancestral",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    assert behind(workflow, sampler.inputs["positive"]).inputs["text"] == "a fox"
    assert behind(workflow, sampler.inputs["negative"]).inputs["text"] == "blurry"
    assert behind(workflow, sampler.inputs["latent_image"]).inputs == {"width": 832, "height": 1216, "batch_size": 3}


def test_a_picture_to_begin_from_takes_the_place_of_the_empty_one() -> None:
    workflow = picture_workflow(replace(PICTURE, beginning=Beginning("input.jpg", 0.6)))
    (sampler,) = nodes_of(workflow, "KSampler")
    assert sampler.inputs["denoise"] == 0.6
    batch = behind(workflow, sampler.inputs["latent_image"])
    assert batch.inputs["amount"] == 3
    scaled = behind(workflow, behind(workflow, batch.inputs["samples"]).inputs["pixels"])
    assert (scaled.inputs["width"], scaled.inputs["height"]) == (832, 1216)
    assert behind(workflow, scaled.inputs["image"]).inputs == {"image": "input.jpg"}
    assert nodes_of(workflow, "EmptyLatentImage") == []


@pytest.mark.parametrize(
    ("size", "area", "fitted"),
    [
        ((4000, 3000), 1024 * 1024, (1184, 888)),
        ((3000, 4000), 1024 * 1024, (888, 1184)),
        ((100, 100), 1024 * 1024, (1024, 1024)),
        ((10_000, 1), 512 * 512, (51_200, 16)),
    ],
)
def test_a_fitted_size_keeps_shape_and_area_in_steps_of_eight(
    size: tuple[int, int], area: int, fitted: tuple[int, int]
) -> None:
    assert fitted_size(*size, area) == fitted
