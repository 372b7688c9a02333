"""Fit a workflow to what a person typed on the command line: file names, prompt, seed, LoRA strength, size. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui.errors import RequestError
from comfyui.workflow.changes import SEED_INPUTS
from comfyui.workflow.parse import Workflow


def with_values(workflow: Workflow, values: Mapping[str, Any]) -> Workflow:
    """A copy in which each named input has its new value in every node that has that input as a plain value.

    Raises RequestError for a name that no node has: what a person asked for would be ignored in silence.
    """
    for name in values:
        if not any(_is_plain(node.inputs.get(name)) for node in workflow.nodes.values()):
            raise RequestError(f"The workflow has no node with an input {name!r} to set.")
    return workflow.changed(
        lambda node: {name: value for name, value in values.items() if _is_plain(node.inputs.get(name))}
    )


def with_seed(workflow: Workflow, seed: int) -> Workflow:
    """A copy with this seed in every seed input."""
    return workflow.changed(lambda node: {name: seed for name in SEED_INPUTS if _is_plain(node.inputs.get(name))})


def with_prompt(workflow: Workflow, text: str) -> Workflow:
    """A copy with this text in the nodes that the samplers' `positive` inputs come from.

    Raises RequestError where there is no such node.
    """
    encoders = {
        encoder
        for node in workflow.nodes.values()
        if (encoder := _text_source(workflow, node.inputs.get("positive"))) is not None
    }
    if not encoders:
        raise RequestError("The workflow has no text node behind a sampler's `positive`, so a prompt has no place.")
    return workflow.changed(lambda node: {"text": text} if node.id in encoders else {})


def _text_source(workflow: Workflow, link: object) -> str | None:
    """Follow conditioning links back to the node that holds the text."""
    for _ in range(len(workflow.nodes)):
        if not (isinstance(link, list) and link and (node := workflow.nodes.get(str(link[0])))):
            return None
        if isinstance(node.inputs.get("text"), str):
            return node.id
        link = node.inputs.get("conditioning", node.inputs.get("positive"))
    return None


def _is_plain(value: object) -> bool:
    return value is not None and not isinstance(value, list | dict)
