"""ComfyUI's refusals, in words for the person who sent the workflow. Pure.

Format: the 400 answer of POST /prompt (execution.py of ComfyUI 0.30.0, validate_prompt and validate_inputs). ComfyUI
names inputs and types; what is added here is the node as the person knows it, the nearest right value, and the way out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.errors import NodeProblem, WorkflowError
from comfyui.workflow.node_classes import InputSpec, NodeClasses, read_input
from comfyui.workflow.parse import Node, Workflow
from comfyui.workflow.wording import (
    bad_link,
    no_output,
    not_an_input_file,
    not_in_list,
    out_of_range,
    problem,
    refuse,
    type_name,
    unknown_class,
)

INPUT_FILE_CLASSES = ("LoadImage", "LoadImageMask", "LoadAudio", "LoadVideo")


def explain_refusal(
    answer: Mapping[str, Any], workflow: Workflow, classes: NodeClasses, input_files: Sequence[str] = ()
) -> WorkflowError:
    """The error for a prompt that ComfyUI refused: every fault it named, each in one sentence.

    `answer` is its JSON, `classes` its known node classes, `input_files` the names in its input folder.
    """
    problems = []
    reports = (answer.get("node_errors") or {}).items()
    for node_id, report in sorted(reports, key=lambda item: workflow.position(str(item[0]))):
        # ComfyUI goes through a set of input names: without this, their order changes from start to start.
        for fault in sorted(report.get("errors") or (), key=lambda fault: _input_position(fault, report, classes)):
            problems.append(_input_problem(str(node_id), fault, workflow, classes, input_files))
    if not problems:
        error = answer.get("error")
        problems.append(_prompt_problem(error if isinstance(error, Mapping) else {}, workflow, classes))
    return refuse(problems)


def _prompt_problem(error: Mapping[str, Any], workflow: Workflow, classes: NodeClasses) -> NodeProblem:
    """A fault of the prompt as a whole, where ComfyUI names no input."""
    kind = str(error.get("type"))
    extra = error.get("extra_info") or {}
    node_id, class_type = str(extra.get("node_id", "")), str(extra.get("class_type") or "")
    if kind == "missing_node_type" and class_type:
        return unknown_class(workflow, node_id, class_type, classes)
    if kind == "prompt_no_outputs":
        return no_output()
    text = f"{error.get('message', 'ComfyUI gave no reason')} {error.get('details') or ''}".strip()
    return NodeProblem(node_id, workflow.title(node_id), class_type, None, kind, text)


def _input_problem(
    node_id: str, fault: Mapping[str, Any], workflow: Workflow, classes: NodeClasses, input_files: Sequence[str]
) -> NodeProblem:
    """One entry of node_errors[id].errors."""
    kind = str(fault.get("type"))
    extra = fault.get("extra_info") or {}
    name = str(extra["input_name"]) if extra.get("input_name") is not None else None
    node = workflow.nodes.get(node_id)
    class_type = node.class_type if node else ""
    value = extra.get("received_value", node.inputs.get(name) if node and name else None)
    spec = _spec(classes, class_type, name, extra)
    shown = name or ""
    match kind:
        case "value_not_in_list":
            what = not_in_list(shown, value, spec.choices or () if spec else ())
        case "required_input_missing":
            what = f"the input {name} is missing; link it or give it a value."
        case "value_smaller_than_min" | "value_bigger_than_max":
            what = out_of_range(shown, value, spec)
        case "invalid_input_type":
            what = f"{name} is {value!r}, which is not {type_name(spec)}."
        case "return_type_mismatch":
            linked = extra.get("linked_node") or ["?"]
            what = f"{name} takes {type_name(spec)}, but node {linked[0]} gives {extra.get('received_type')}."
        case "bad_linked_input":
            what = f"{name} is {value!r}; a link is a list of a node id and an output number."
        case "custom_validation_failed" if class_type in INPUT_FILE_CLASSES:
            what = not_an_input_file(shown, value, input_files)
        case _:
            # What ComfyUI names here as the input is the one of the node behind.
            name, what = _first_bad_link(node, workflow, classes) or (name, _as_comfyui_says(fault))
    return problem(workflow, node_id, name, kind, what)


def _spec(classes: NodeClasses, class_type: str, name: str | None, extra: Mapping[str, Any]) -> InputSpec | None:
    """The input at fault: as /object_info has it, for ComfyUI leaves long lists of files out of its answer."""
    known = classes.input(class_type, name)
    return known or read_input(name or "", extra.get("input_config"), required=True)


def _input_position(fault: Mapping[str, Any], report: Mapping[str, Any], classes: NodeClasses) -> tuple[int, str]:
    """Where the input at fault stands in its node, for sorting; last for one that is not known."""
    order = [spec.name for spec in classes.inputs(str(report.get("class_type")))]
    name = str((fault.get("extra_info") or {}).get("input_name"))
    return (order.index(name) if name in order else len(order), name)


def _first_bad_link(node: Node | None, workflow: Workflow, classes: NodeClasses) -> tuple[str, str] | None:
    """The input whose link leads nowhere, and why.

    ComfyUI says of these only "Exception when validating node: '7'", or "tuple index out of range".
    """
    for name, value in node.inputs.items() if node else ():
        if what := bad_link(name, value, workflow, classes):
            return name, what
    return None


def _as_comfyui_says(fault: Mapping[str, Any]) -> str:
    return f"{fault.get('message')}: {fault.get('details')}".rstrip(": ") + "."
