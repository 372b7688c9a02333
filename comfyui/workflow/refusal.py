"""ComfyUI's refusals and failures, in words for the person who sent the workflow. Pure.

Formats: the 400 answer of POST /prompt (execution.py of ComfyUI 0.30.0, validate_prompt and validate_inputs) and the
`execution_error` message. ComfyUI names inputs and types; what is added here is the node as the person knows it, the
nearest right value, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.engine.events import ExecutionFailed
from comfyui.errors import ExecutionError, NodeProblem, WorkflowError
from comfyui.workflow.parse import Node, Workflow

LISTED_VALUES = 8
"""How many known values a message lists; a models folder may hold hundreds."""

TRAINING_INPUT_OF = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "vae_name": "vaes",
    "control_net_name": "controlnets",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
}
"""Which list of train() puts a file where a loader's input finds it."""

INPUT_FILE_CLASSES = ("LoadImage", "LoadImageMask", "LoadAudio", "LoadVideo")


def explain_refusal(
    answer: Mapping[str, Any], workflow: Workflow, object_info: Mapping[str, Any], input_files: Sequence[str] = ()
) -> WorkflowError:
    """The error for a prompt that ComfyUI refused: every fault it named, each in one sentence.

    `answer` is its JSON, `object_info` its known node classes, `input_files` the names in its input folder.
    """
    problems = []
    for node_id, report in sorted(
        (answer.get("node_errors") or {}).items(), key=lambda item: workflow.position(str(item[0]))
    ):
        # ComfyUI goes through a set of input names: without this, their order changes from start to start.
        for fault in sorted(report.get("errors") or (), key=lambda fault: _input_position(fault, report, object_info)):
            problems.append(_input_problem(str(node_id), fault, workflow, object_info, input_files))
    error = answer.get("error") or {}
    if not problems and isinstance(error, Mapping):
        problems.append(_prompt_problem(error, workflow, object_info))
    if len(problems) == 1:
        return WorkflowError(f"ComfyUI cannot run this workflow: {problems[0].text}", problems=problems)
    lines = "\n".join(f"  {number}. {problem.text}" for number, problem in enumerate(problems, 1))
    return WorkflowError(f"ComfyUI cannot run this workflow; {len(problems)} problems:\n{lines}", problems=problems)


def explain_failure(event: ExecutionFailed, workflow: Workflow) -> ExecutionError:
    """The error for a node that raised while the workflow ran: which node, which exception, and the likely cause."""
    hint = _failure_hint(event)
    cause = f"{event.exception_type.rsplit('.', 1)[-1]}: {event.exception_message}".strip().rstrip(".")
    text = f"{_node_name(event.node_id, event.class_type, workflow)} failed: {cause}.{' ' + hint if hint else ''}"
    problem = NodeProblem(
        event.node_id, workflow.title(event.node_id), event.class_type, None, event.exception_type, text
    )
    return ExecutionError(text, problem=problem, traceback=event.traceback)


def _failure_hint(event: ExecutionFailed) -> str:
    if "SafetensorError" in event.exception_type:
        return "The weights file it loads is cut short or damaged on disk: bake it again from a complete source."
    if "OutOfMemory" in event.exception_type or "out of memory" in event.exception_message.lower():
        return "The GPU has too little memory for this: use a smaller size or batch, or a larger GPU."
    return ""


def _node_name(node_id: str, class_type: str, workflow: Workflow) -> str:
    title = workflow.title(node_id)
    return (
        f"Node {node_id} {title!r} ({class_type})"
        if title and title != class_type
        else f"Node {node_id} ({class_type})"
    )


def _prompt_problem(error: Mapping[str, Any], workflow: Workflow, object_info: Mapping[str, Any]) -> NodeProblem:
    """A fault of the prompt as a whole, where ComfyUI names no input."""
    kind = str(error.get("type"))
    extra = error.get("extra_info") or {}
    node_id, class_type = str(extra.get("node_id", "")), str(extra.get("class_type") or "")
    if kind == "missing_node_type" and class_type:
        near = difflib.get_close_matches(class_type, list(object_info), n=3)
        known = f" The nearest it has: {', '.join(near)}." if near else ""
        text = (
            f"{_node_name(node_id, class_type, workflow)} is of a class that this ComfyUI does not have.{known} "
            "Correct the name, or add the custom node pack it comes from to ComfyUI's custom_nodes folder."
        )
    elif kind == "prompt_no_outputs":
        text = "no node in it saves or shows anything; add an output node such as SaveImage."
    else:
        text = f"{error.get('message')} {error.get('details') or ''}".strip()
    return NodeProblem(node_id, workflow.title(node_id), class_type, None, kind, text)


def _input_problem(
    node_id: str,
    fault: Mapping[str, Any],
    workflow: Workflow,
    object_info: Mapping[str, Any],
    input_files: Sequence[str],
) -> NodeProblem:
    """One entry of node_errors[id].errors."""
    kind = str(fault.get("type"))
    extra = fault.get("extra_info") or {}
    name = str(extra["input_name"]) if extra.get("input_name") is not None else None
    node = workflow.nodes.get(node_id)
    class_type = node.class_type if node else ""
    value = extra.get("received_value", node.inputs.get(name) if node and name else None)
    # ComfyUI leaves the config of a long list of files out of its answer.
    config = _input_config(object_info, class_type, name) or extra.get("input_config") or ()
    match kind:
        case "value_not_in_list":
            what = _not_in_list(name or "", value, _choices(config))
        case "required_input_missing":
            what = f"the input {name} is missing; link it or give it a value."
        case "value_smaller_than_min" | "value_bigger_than_max":
            what = f"{name} is {value!r}; it must be {_range(config)}."
        case "invalid_input_type":
            what = f"{name} is {value!r}, which is not {_type_name(config)}."
        case "return_type_mismatch":
            linked = extra.get("linked_node") or ["?"]
            what = f"{name} takes {_type_name(config)}, but node {linked[0]} gives {extra.get('received_type')}."
        case "bad_linked_input":
            what = f"{name} is {value!r}; a link is a list of a node id and an output number."
        case "custom_validation_failed" if class_type in INPUT_FILE_CLASSES:
            there = (
                f"The files there: {', '.join(sorted(input_files)[:LISTED_VALUES])}."
                if input_files
                else "No file was sent."
            )
            what = f"{name} is {value!r}, which is not among the input files. {there} Send it as input_file."
        case _:
            # What ComfyUI names here as the input is the one of the node behind.
            name, what = _bad_link(node, workflow, object_info) or (name, _as_comfyui_says(fault))
    return NodeProblem(
        node_id, workflow.title(node_id), class_type, name, kind, f"{_node_name(node_id, class_type, workflow)}: {what}"
    )


def _not_in_list(name: str, value: object, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=3, cutoff=0.5)
    listed = ", ".join(near or list(choices)[:LISTED_VALUES])
    more = f" (of {len(choices)})" if len(choices) > LISTED_VALUES or near else ""
    known = f"{'the nearest' if near else 'known'}{more}: {listed}" if choices else "there are none here yet"
    training_input = TRAINING_INPUT_OF.get(name)
    way_out = f" Bake the file with the training input `{training_input}`." if training_input else ""
    return f"{name} is {value!r}, which is not there; {known}.{way_out}"


def _input_config(object_info: Mapping[str, Any], class_type: str, name: str | None) -> Sequence[Any]:
    inputs = (object_info.get(class_type) or {}).get("input") or {}
    for group in ("required", "optional"):
        config = (inputs.get(group) or {}).get(name)
        if isinstance(config, list | tuple):
            return config
    return ()


def _input_position(
    fault: Mapping[str, Any], report: Mapping[str, Any], object_info: Mapping[str, Any]
) -> tuple[int, str]:
    """Where the input at fault stands in its node, for sorting; last for one that is not known."""
    inputs = (object_info.get(str(report.get("class_type"))) or {}).get("input") or {}
    order = [name for group in ("required", "optional") for name in inputs.get(group) or ()]
    name = str((fault.get("extra_info") or {}).get("input_name"))
    return (order.index(name) if name in order else len(order), name)


def _choices(config: Sequence[Any]) -> list[str]:
    """The values of a choice: [[values…], options] or ["COMBO", {"options": [values…]}]."""
    if config and isinstance(config[0], list | tuple):
        return [str(value) for value in config[0]]
    return [str(value) for value in _options(config).get("options") or ()]


def _options(config: Sequence[Any]) -> Mapping[str, Any]:
    return config[1] if len(config) > 1 and isinstance(config[1], Mapping) else {}


def _range(config: Sequence[Any]) -> str:
    options = _options(config)
    bounds = [f"at {word} {options[key]}" for word, key in (("least", "min"), ("most", "max")) if key in options]
    return " and ".join(bounds) or "within its range"


def _type_name(config: Sequence[Any]) -> str:
    return str(config[0]) if config and isinstance(config[0], str) else "one of its choices"


def _bad_link(node: Node | None, workflow: Workflow, object_info: Mapping[str, Any]) -> tuple[str, str] | None:
    """The input whose link leads nowhere, and why.

    ComfyUI says of these only "Exception when validating node: '7'", or "tuple index out of range".
    """
    for name, value in node.inputs.items() if node else ():
        if not (isinstance(value, list) and len(value) == 2):
            continue
        node_id, output = value
        source = workflow.nodes.get(str(node_id))
        if source is None:
            return name, f"{name} is linked to node {node_id}, which is not in the workflow."
        if not isinstance(node_id, str):
            return name, f'{name} is linked to node {node_id}; in a link a node id is a text: "{node_id}".'
        outputs = (object_info.get(source.class_type) or {}).get("output")
        if outputs is not None and not (isinstance(output, int) and output < len(outputs)):
            what = f"{name} is linked to output {output!r} of node {node_id}, which has {len(outputs)}, counted from 0."
            return name, what
    return None


def _as_comfyui_says(fault: Mapping[str, Any]) -> str:
    return f"{fault.get('message')}: {fault.get('details')}".rstrip(": ") + "."
