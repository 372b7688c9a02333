"""ComfyUI's true answers, and the exact words that people get for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui.engine.events import ExecutionFailed, parse_message
from comfyui.errors import WorkflowError
from comfyui.workflow.failure import explain_failure
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import parse_workflow
from comfyui.workflow.refusal import explain_refusal
from tests.workflow import answers
from tests.workflow.answers import OBJECT_INFO, WORKFLOW, changed, raised, refused

LORA_NODE = {
    "10": {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"lora_name": "add_detial.safetensors", "strength_model": 1.0, "model": ["4", 0]},
        "_meta": {"title": "LoraLoaderModelOnly"},
    }
}
CONTROLNET_NODE = {"11": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "a.safetensors"}}}
LOAD_IMAGE = {"1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}, "_meta": {"title": "Photo"}}}
LOADER, SAMPLER, SAVER = "CheckpointLoaderSimple", "KSampler", "SaveImage"


def explain(answer: dict[str, Any], workflow: dict[str, Any], input_files: tuple[str, ...] = ()) -> WorkflowError:
    return explain_refusal(answer, parse_workflow(json.dumps(workflow)), NodeClasses(OBJECT_INFO), input_files)


@pytest.mark.parametrize(
    ("answer", "workflow", "text"),
    [
        pytest.param(
            answers.UNKNOWN_CLASS,
            {**WORKFLOW, "3": {**WORKFLOW["3"], "class_type": "KSamplr"}},
            "Node 3 'KSampler' (KSamplr) is of a class that this ComfyUI does not have. The nearest it has: KSampler. "
            "Correct the name, or add the custom node pack it comes from to ComfyUI's custom_nodes folder.",
            id="unknown class",
        ),
        pytest.param(
            refused({"4": (LOADER, [answers.CHECKPOINT_NOT_THERE])}),
            changed(n4_ckpt_name="sd_xl_base_1.0.safetensor"),
            "Node 4 'Load Checkpoint' (CheckpointLoaderSimple): ckpt_name is 'sd_xl_base_1.0.safetensor', which is not "
            "there; the nearest (of 3): sd_xl_base_1.0.safetensors, cut.safetensors. "
            "Bake the file with the training input `checkpoints`, or give a link to it in place of its name.",
            id="checkpoint not there",
        ),
        pytest.param(
            refused({"10": ("LoraLoaderModelOnly", [answers.LORA_NOT_THERE])}),
            {**WORKFLOW, **LORA_NODE},
            "Node 10 (LoraLoaderModelOnly): lora_name is 'add_detial.safetensors', which is not there; the nearest "
            "(of 13): add_detail.safetensors, style_9.safetensors, style_8.safetensors. Bake the file with the "
            "training input `loras`, or give a link to it in place of its name.",
            id="LoRA not there",
        ),
        pytest.param(
            refused({"11": ("ControlNetLoader", [answers.CONTROLNET_NOT_THERE])}),
            {**WORKFLOW, **CONTROLNET_NODE},
            "Node 11 (ControlNetLoader): control_net_name is 'a.safetensors', which is not there; there are none here "
            "yet. Bake the file with the training input `controlnets`, or give a link to it in place of its name.",
            id="no ControlNet at all",
        ),
        pytest.param(
            refused({"3": (SAMPLER, [answers.SAMPLER_NOT_THERE])}),
            changed(n3_sampler_name="eulr"),
            "Node 3 (KSampler): sampler_name is 'eulr', which is not there; the nearest (of 44): euler, "
            "heun, euler_cfg_pp.",
            id="a choice from a list that ComfyUI leaves out",
        ),
        pytest.param(
            refused({"5": ("EmptyLatentImage", [answers.TOO_WIDE])}),
            changed(n5_width=20000),
            "Node 5 'Canvas' (EmptyLatentImage): width is 20000; it must be at least 16 and at most 16384.",
            id="too big",
        ),
        pytest.param(
            refused({"3": (SAMPLER, [answers.TOO_FEW_STEPS])}),
            changed(n3_steps=0),
            "Node 3 (KSampler): steps is 0; it must be at least 1 and at most 10000.",
            id="too small",
        ),
        pytest.param(
            refused({"3": (SAMPLER, [answers.STEPS_NO_NUMBER])}),
            changed(n3_steps="many"),
            "Node 3 (KSampler): steps is 'many', which is not INT.",
            id="wrong type",
        ),
        pytest.param(
            refused({"6": ("CLIPTextEncode", [answers.TEXT_MISSING])}),
            changed(n6_text=...),
            "Node 6 'Prompt' (CLIPTextEncode): the input text is missing; link it or give it a value.",
            id="missing input",
        ),
        pytest.param(
            refused({"3": (SAMPLER, [answers.DANGLING_INNER])}),
            changed(n3_model=["77", 0]),
            "Node 3 (KSampler): model is linked to node 77, which is not in the workflow.",
            id="dangling link",
        ),
        pytest.param(
            refused({"9": (SAVER, [raised("'77'", "KeyError")])}, "Exception when validating node: '77'"),
            changed(n9_images=["77", 0]),
            "Node 9 'Save Image' (SaveImage): images is linked to node 77, which is not in the workflow.",
            id="dangling link of an output node",
        ),
        pytest.param(
            refused({"9": (SAVER, [raised("8", "KeyError")])}, "Exception when validating node: 8"),
            changed(n9_images=[8, 0]),
            "Node 9 'Save Image' (SaveImage): images is linked to node 8; in a link a node id is a text: \"8\".",
            id="link by number",
        ),
        pytest.param(
            refused({"9": (SAVER, [raised("tuple index out of range", "IndexError")])}),
            changed(n9_images=["8", 5]),
            "Node 9 'Save Image' (SaveImage): images is linked to output 5 of node 8, which has 1, counted from 0.",
            id="link to an output that is not there",
        ),
        pytest.param(
            refused({"9": (SAVER, [answers.IMAGES_FROM_MODEL])}),
            changed(n9_images=["4", 0]),
            "Node 9 'Save Image' (SaveImage): images takes IMAGE, but node 4 gives MODEL.",
            id="link type mismatch",
        ),
        pytest.param(
            refused({"9": (SAVER, [answers.LINK_OF_ONE])}),
            changed(n9_images=["8"]),
            "Node 9 'Save Image' (SaveImage): images is ['8']; a link is a list of a node id and an output number.",
            id="half a link",
        ),
        pytest.param(
            refused({"1": ("LoadImage", [answers.IMAGE_NOT_THERE])}),
            LOAD_IMAGE,
            "Node 1 'Photo' (LoadImage): image is 'cat.png', which is not among the input files. No file was sent. "
            "Send it as input_file.",
            id="image not there",
        ),
        pytest.param(
            refused({"1": ("ImageInvert", [answers.CYCLE])}),
            {"1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}}, "2": WORKFLOW["8"]},
            "Node 1 (ImageInvert): Dependency cycle detected: 1 (ImageInvert) -> 2 (ImageInvert) -> 1 (ImageInvert).",
            id="cycle",
        ),
        pytest.param(
            answers.NO_OUTPUTS,
            {node_id: node for node_id, node in WORKFLOW.items() if node_id != "9"},
            "no node in it saves or shows anything; add an output node such as SaveImage.",
            id="no output node",
        ),
    ],
)
def test_a_refusal_names_the_node_the_fault_and_the_way_out(
    answer: dict[str, Any], workflow: dict[str, Any], text: str
) -> None:
    error = explain(answer, workflow)
    assert str(error) == f"ComfyUI cannot run this workflow: {text}"
    assert [problem.text for problem in error.problems] == [text]


def test_a_missing_image_comes_with_the_names_that_are_there() -> None:
    error = explain(refused({"1": ("LoadImage", [answers.IMAGE_NOT_THERE])}), LOAD_IMAGE, ("refs/b.png", "a.png"))
    assert str(error).endswith("The files there: a.png, refs/b.png. Send it as input_file.")


def test_several_problems_are_all_listed_in_the_order_of_the_workflow_and_of_a_nodes_inputs() -> None:
    found = {
        "3": (SAMPLER, [answers.TOO_MUCH_CFG, answers.TOO_FEW_STEPS]),
        "5": ("EmptyLatentImage", [answers.TOO_WIDE]),
        "4": (LOADER, [answers.CHECKPOINT_NOT_THERE]),
    }
    workflow = changed(n4_ckpt_name="sd_xl_base_1.0.safetensor", n5_width=20000, n3_steps=0, n3_cfg=1000)
    error = explain(refused(found), workflow)
    lines = str(error).splitlines()
    assert lines[0] == "ComfyUI cannot run this workflow; 4 problems:"
    assert [line[:12] for line in lines[1:]] == ["  1. Node 4 ", "  2. Node 5 ", "  3. Node 3 ", "  4. Node 3 "]
    assert lines[3] == "  3. Node 3 (KSampler): steps is 0; it must be at least 1 and at most 10000."
    assert lines[4] == "  4. Node 3 (KSampler): cfg is 1000.0; it must be at least 0.0 and at most 100.0."
    assert [problem.input_name for problem in error.problems] == ["ckpt_name", "width", "steps", "cfg"]


def test_a_problem_carries_its_facts_as_attributes() -> None:
    (problem,) = explain(refused({"3": (SAMPLER, [answers.DANGLING_INNER])}), changed(n3_model=["77", 0])).problems
    assert (problem.node_id, problem.title, problem.class_type) == ("3", "KSampler", "KSampler")
    assert (problem.input_name, problem.kind) == ("model", "exception_during_inner_validation")


def test_a_list_of_choices_in_the_newer_notation_is_known_too() -> None:
    node = {"1": {"class_type": "LatentConcat", "inputs": {"dim": "z"}}}
    fault = answers.fault("value_not_in_list", "Value not in list", "dim", input_name="dim", received_value="z")
    error = explain(refused({"1": ("LatentConcat", [fault])}), node)
    assert str(error).endswith("dim is 'z', which is not there; known: x, -x, y.")


def test_a_long_list_of_unlike_names_is_cut() -> None:
    workflow = changed(n3_sampler_name="#")
    fault = {**answers.SAMPLER_NOT_THERE, "extra_info": {"input_name": "sampler_name", "received_value": "#"}}
    text = explain(refused({"3": (SAMPLER, [fault])}), workflow).problems[0].text
    assert text.endswith(
        "known (of 44): euler, euler_cfg_pp, euler_ancestral, euler_ancestral_cfg_pp, heun, heunpp2, exp_heun_2_x0, "
        "exp_heun_2_x0_sde."
    )


@pytest.mark.parametrize(
    "answer", [{}, {"error": "no"}, {"error": {}, "node_errors": None}, {"node_errors": {"3": {}}}]
)
def test_an_answer_of_another_shape_is_still_a_workflow_error(answer: dict[str, Any]) -> None:
    assert str(explain(answer, WORKFLOW)).startswith("ComfyUI cannot run this workflow")


def failed(message: dict[str, Any]) -> ExecutionFailed:
    event = parse_message("execution_error", message)
    assert isinstance(event, ExecutionFailed)
    return event


def test_weights_that_are_cut_are_named_as_the_likely_cause() -> None:
    error = explain_failure(failed(answers.CUT_CHECKPOINT_FAILED), parse_workflow(json.dumps(WORKFLOW)))
    assert str(error) == (
        "Node 4 'Load Checkpoint' (CheckpointLoaderSimple) failed: SafetensorError: Error while deserializing header: "
        "incomplete metadata, file not fully covered. The weights file it loads is cut short or damaged on disk: bake "
        "it again from a complete source."
    )
    assert error.problem.node_id == "4"
    assert error.problem.kind == "safetensors._safetensors_rust.SafetensorError"
    assert error.traceback[0].startswith('  File "/src/ComfyUI/comfy/utils.py"')


def test_a_gpu_without_memory_is_named_with_what_helps() -> None:
    text = str(explain_failure(failed(answers.OUT_OF_MEMORY), parse_workflow(json.dumps(WORKFLOW))))
    assert text.startswith(
        "Node 3 (KSampler) failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    )
    assert text.endswith(" The GPU has too little memory for this: use a smaller size or batch, or a larger GPU.")


def test_another_failure_of_a_node_that_a_node_made_gets_no_hint() -> None:
    event = ExecutionFailed("id", "5.0.1", "KSampler", "ValueError", "math domain error")
    error = explain_failure(event, parse_workflow(json.dumps(WORKFLOW)))
    assert str(error) == "Node 5.0.1 (KSampler) failed: ValueError: math domain error."
