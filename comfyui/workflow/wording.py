"""How faults of a workflow are said to the person who sent it. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from comfyui.errors import NodeProblem, WorkflowError
from comfyui.workflow.node_classes import CHOICE, InputSpec, NodeClasses
from comfyui.workflow.node_packs import where_from
from comfyui.workflow.parse import Workflow

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


def refuse(problems: Sequence[NodeProblem]) -> WorkflowError:
    """The error for a workflow with these problems: one is a sentence, more are a numbered list."""
    if len(problems) == 1:
        return WorkflowError(f"ComfyUI cannot run this workflow: {problems[0].text}", problems=problems)
    lines = "\n".join(f"  {number}. {problem.text}" for number, problem in enumerate(problems, 1))
    return WorkflowError(f"ComfyUI cannot run this workflow; {len(problems)} problems:\n{lines}", problems=problems)


def node_name(node_id: str, class_type: str, workflow: Workflow) -> str:
    """A node as the person knows it: id, title and class."""
    title = workflow.title(node_id)
    return f"Node {node_id}{f' {title!r}' if title not in ('', class_type) else ''} ({class_type})"


def problem(workflow: Workflow, node_id: str, input_name: str | None, kind: str, what: str) -> NodeProblem:
    """A problem of one node; `what` follows the node's name."""
    node = workflow.nodes.get(node_id)
    class_type = node.class_type if node else ""
    text = f"{node_name(node_id, class_type, workflow)}: {what}"
    return NodeProblem(node_id, workflow.title(node_id), class_type, input_name, kind, text)


def unknown_class(workflow: Workflow, node_id: str, class_type: str, classes: NodeClasses) -> NodeProblem:
    """A node of a class that this ComfyUI does not have."""
    near = classes.nearest(class_type)
    known = f" The nearest it has: {', '.join(near)}." if near else ""
    text = (
        f"{node_name(node_id, class_type, workflow)} is of a class that this ComfyUI does not have.{known} "
        f"{where_from(class_type)}"
    )
    return NodeProblem(node_id, workflow.title(node_id), class_type, None, "missing_node_type", text)


def no_output() -> NodeProblem:
    """A workflow without a node that saves or shows anything."""
    text = "no node in it saves or shows anything; add an output node such as SaveImage."
    return NodeProblem("", "", "", None, "prompt_no_outputs", text)


def not_in_list(name: str, value: object, choices: Sequence[str]) -> str:
    """A value that is none of a choice's: the nearest ones, and how to get the file if it is one of weights."""
    near = difflib.get_close_matches(str(value), choices, n=3, cutoff=0.5)
    listed = ", ".join(near or list(choices)[:LISTED_VALUES])
    more = f" (of {len(choices)})" if len(choices) > LISTED_VALUES or near else ""
    known = f"{'the nearest' if near else 'known'}{more}: {listed}" if choices else "there are none here yet"
    training_input = TRAINING_INPUT_OF.get(name)
    link = "or give a link to it in place of its name"
    way_out = f" Bake the file with the training input `{training_input}`, {link}." if training_input else ""
    return f"{name} is {value!r}, which is not there; {known}.{way_out}"


def not_an_input_file(name: str, value: object, input_files: Sequence[str]) -> str:
    """A file that a node wants to read and nobody sent."""
    listed = ", ".join(sorted(input_files)[:LISTED_VALUES])
    there = f"The files there: {listed}." if listed else "No file was sent."
    return f"{name} is {value!r}, which is not among the input files. {there} Send it as input_file."


def out_of_range(name: str, value: object, spec: InputSpec | None) -> str:
    """A number outside its bounds."""
    options = spec.options if spec else {}
    bounds = [f"at {word} {options[key]}" for word, key in (("least", "min"), ("most", "max")) if key in options]
    return f"{name} is {value!r}; it must be {' and '.join(bounds) or 'within its range'}."


def type_name(spec: InputSpec | None) -> str:
    """What an input takes."""
    return spec.type if spec and spec.type != CHOICE else "one of its choices"


def bad_link(name: str, value: object, workflow: Workflow, classes: NodeClasses) -> str | None:
    """Why a link leads nowhere; None for one that leads somewhere, or is a plain value."""
    if not isinstance(value, list):
        return None
    if len(value) != 2:
        return f"{name} is {value!r}; a link is a list of a node id and an output number."
    node_id, output = value
    source = workflow.nodes.get(str(node_id))
    if source is None:
        return f"{name} is linked to node {node_id}, which is not in the workflow."
    if not isinstance(node_id, str):
        return f'{name} is linked to node {node_id}; in a link a node id is a text: "{node_id}".'
    outputs = classes.outputs(source.class_type)
    if outputs is not None and not (type(output) is int and 0 <= output < len(outputs)):
        return f"{name} is linked to output {output!r} of node {node_id}, which has {len(outputs)}, counted from 0."
    return None
