"""From the text a person sends to a Workflow, or one sentence that says what is wrong with it.

The API format is what ComfyUI's "Export (API)" writes: node id → {"class_type", "inputs", "_meta": {"title"}}
(execution.py, validate_prompt). Pure: no network, no files.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfyui.errors import WorkflowError

MAX_DEPTH = 100
"""A workflow nests a handful of levels; hundreds would run into Python's recursion limit where it is copied."""
HOW_TO_EXPORT = "In ComfyUI choose Workflow → Export (API), and send the content of that file."
TOO_DEEP = "workflow_json is nested too deeply to be a workflow."
ESCAPED = re.compile(r'\s*\{(\s|\\[nrt])*\\"')
"""How JSON begins that was copied out of the text it was escaped in, without the quotes around it: `{\\"3\\": …`."""
NODE_ID = re.compile(r"[\d:]+")
"""As ComfyUI's browser interface makes them, for nodes in subgraphs too."""


@dataclass(frozen=True)
class Node:
    """One node: its id in the workflow, its class, its title as the person wrote it, and its inputs.

    An input is a value, or a link: [id of the node it comes from, number of that node's output].
    """

    id: str
    class_type: str
    title: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Workflow:
    """A workflow in API format; the order of `nodes` is the order in the text."""

    nodes: Mapping[str, Node]

    def prompt(self) -> dict[str, Any]:
        """The nodes as POST /prompt takes them; a fresh copy that may be changed."""
        return {
            node.id: {
                "class_type": node.class_type,
                "inputs": copy.deepcopy(dict(node.inputs)),
                "_meta": {"title": node.title},
            }
            for node in self.nodes.values()
        }

    def changed(self, change: Callable[[Node], Mapping[str, Any]]) -> Workflow:
        """A copy in which the inputs that `change` returns for a node replace that node's own."""
        return Workflow(
            {node.id: dataclasses.replace(node, inputs={**node.inputs, **change(node)}) for node in self.nodes.values()}
        )

    def position(self, node_id: str) -> int:
        """Where a node stands in the text. Nodes a node made while it ran ("5.0.1") stand where that one does."""
        positions = self._positions
        return positions.get(node_id, positions.get(node_id.split(".", 1)[0], len(positions)))

    def title(self, node_id: str) -> str:
        """The title of a node, "" for one that is not in the workflow."""
        node = self.nodes.get(node_id)
        return node.title if node else ""

    @functools.cached_property
    def _positions(self) -> Mapping[str, int]:
        return {node_id: position for position, node_id in enumerate(self.nodes)}


def parse_workflow(text: str) -> Workflow:
    """The workflow in API format that a text holds. Raises WorkflowError as `read_json` and `workflow_of` do."""
    return workflow_of(read_json(text))


def read_json(text: str) -> Any:
    """The JSON of `workflow_json`, whatever the format of the workflow in it. Raises WorkflowError with the way out.

    Two wrappings that people often end up with are understood: JSON escaped once too often (a JSON string that
    holds the JSON, with its quotes or without), and {"prompt": {…}}, the body of ComfyUI's own POST /prompt.
    """
    if not text or not text.strip():
        raise WorkflowError(f"workflow_json is empty; it takes a workflow. {HOW_TO_EXPORT}")
    text = text.removeprefix("\ufeff")
    value = _load(f'"{text.strip()}"' if ESCAPED.match(text) else text)
    if isinstance(value, str):
        value = _load(value)
    if isinstance(value, dict) and isinstance(value.get("prompt"), dict) and "class_type" not in value["prompt"]:
        value = value["prompt"]
    return value


def workflow_of(value: object) -> Workflow:
    """The workflow that API-format JSON describes. Raises WorkflowError with the way out for anything else.

    What programs put beside the nodes ("client_id", "extra_data", "version") is left out.
    """
    if not isinstance(value, dict):
        raise WorkflowError(
            f"workflow_json holds a JSON {_json_kind(value)}, but a workflow is an object of nodes. {HOW_TO_EXPORT}"
        )
    if isinstance(value.get("nodes"), list):
        raise WorkflowError(
            "workflow_json is in the UI format (it has `nodes` with positions and widgets), which ComfyUI's API does "
            f"not run. {HOW_TO_EXPORT} Or convert it: scripts/workflow convert FILE."
        )
    if _is_too_deep(value):
        raise WorkflowError(TOO_DEEP)
    if not value:
        raise WorkflowError(f"workflow_json has no nodes in it. {HOW_TO_EXPORT}")
    nodes = {key: entry for key, entry in value.items() if _may_be_node(key, entry)}
    return Workflow({node_id: _node(node_id, node) for node_id, node in (nodes or value).items()})


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - 20) : error.pos + 20].strip()
        raise WorkflowError(
            f"workflow_json is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}, near "
            f"{around!r}. Send the exported file as it is; a program should make the text with json.dumps()."
        ) from error
    except ValueError as error:
        raise WorkflowError("workflow_json holds a number of thousands of digits, which no input takes.") from error
    except RecursionError as error:
        raise WorkflowError(TOO_DEEP) from error


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [child for part in parts for child in part]
    return bool(level)


def _may_be_node(key: str, entry: object) -> bool:
    looks_like_node = isinstance(entry, dict) and ("class_type" in entry or "inputs" in entry)
    return looks_like_node or NODE_ID.fullmatch(key) is not None


def _node(node_id: str, node: object) -> Node:
    where = f"workflow_json: node {node_id!r}"
    if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
        raise WorkflowError(f"{where} has no class_type, so this is not the API format. {HOW_TO_EXPORT}")
    inputs = node.get("inputs", {})
    if not isinstance(inputs, dict):
        raise WorkflowError(f"{where} ({node['class_type']}) has inputs that are a JSON {_json_kind(inputs)}.")
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return Node(node_id, node["class_type"], str(title or node["class_type"]), inputs)


def _json_kind(value: object) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")
