"""From the JSON of a workflow file to records with types; what has another shape is refused with its place.

Both forms of the file are read: version 0.4, with links as lists, and version 1, with links as objects (the
frontend's LGraph.configure and LLink.ts). Only what the conversion needs is read, so a wrong colour is no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.errors import WorkflowError
from comfyui.workflow.convert.javascript import to_text
from comfyui.workflow.convert.model import Link, Mode, SubgraphInput, SubgraphOutput

SAVE_AGAIN = "Open the workflow in ComfyUI, save it again, and send that file."


@dataclass
class RawSlot:
    """An input or output of a node, as written."""

    name: str
    type: Any
    link: int | None = None
    links: list[int] = field(default_factory=list)
    widget: str | None = None


@dataclass
class RawNode:
    """A node as written; None where the file says nothing."""

    id: str
    type: str
    title: str
    mode: int
    inputs: list[RawSlot] | None
    outputs: list[RawSlot] | None
    widgets_values: list[Any] | dict[str, Any] | None
    properties: dict[str, Any]


@dataclass
class RawGraph:
    """Nodes and links of the workflow or of one subgraph."""

    nodes: list[RawNode]
    links: list[Link]


@dataclass
class RawSubgraph(RawGraph):
    """A subgraph's definition."""

    id: str = ""
    name: str = ""
    inputs: list[SubgraphInput] = field(default_factory=list)
    outputs: list[SubgraphOutput] = field(default_factory=list)


@dataclass
class RawWorkflow(RawGraph):
    """The whole file. `group_nodes` are the definitions of the legacy group nodes, unread."""

    last_node_id: int = 0
    subgraphs: list[RawSubgraph] = field(default_factory=list)
    group_nodes: Mapping[str, Any] = field(default_factory=dict)


def is_ui_format(value: object) -> bool:
    """Whether a parsed JSON value is a workflow as ComfyUI saves it: `nodes` is a list. In API format it is not."""
    return isinstance(value, Mapping) and isinstance(value.get("nodes"), list)


def read_workflow(ui: Mapping[str, Any]) -> RawWorkflow:
    """Read the whole file. Raises WorkflowError for what has not the shape of a workflow."""
    if not is_ui_format(ui):
        raise WorkflowError(f"workflow_json is not a workflow in UI format: it has no list of nodes. {SAVE_AGAIN}")
    graph = _graph(ui, "workflow_json")
    state = ui.get("state")
    last = ui.get("last_node_id") if ui.get("version") == 0.4 or not isinstance(state, Mapping) else None
    if last is None and isinstance(state, Mapping):
        last = state.get("lastNodeId")
    extra = ui.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, Mapping) else None
    return RawWorkflow(
        graph.nodes,
        graph.links,
        last_node_id=last if isinstance(last, int) else 0,
        subgraphs=_definitions(ui, "workflow_json"),
        group_nodes=groups if isinstance(groups, Mapping) else {},
    )


def read_inner_nodes(group: Mapping[str, Any], where: str) -> list[RawNode]:
    """The nodes of a legacy group node's definition; they have places instead of ids."""
    entries = [_mapping(entry, f"{where}: a node") for entry in _list(group.get("nodes"), f"{where}: nodes")]
    return [_node({**entry, "id": place}, where) for place, entry in enumerate(entries)]


def _definitions(owner: Mapping[str, Any], where: str) -> list[RawSubgraph]:
    """The definitions of a workflow, those that stand inside another one behind it."""
    definitions = owner.get("definitions")
    if definitions is None:
        return []
    found = []
    for entry in _list(_mapping(definitions, f"{where}: definitions").get("subgraphs"), f"{where}: subgraphs"):
        definition = _mapping(entry, f"{where}: a subgraph")
        subgraph_id = _text(definition.get("id"), f"{where}: a subgraph's id")
        here = f"subgraph {subgraph_id}"
        graph = _graph(definition, here)
        found.append(
            RawSubgraph(
                graph.nodes,
                graph.links,
                id=subgraph_id,
                name=to_text(definition.get("name") or ""),
                inputs=[SubgraphInput(*_io(slot, here)) for slot in _list(definition.get("inputs"), f"{here}: inputs")],
                outputs=[
                    SubgraphOutput(*_io(slot, here)) for slot in _list(definition.get("outputs"), f"{here}: outputs")
                ],
            )
        )
        found += _definitions(definition, here)
    return found


def _io(value: object, where: str) -> tuple[str, Any, list[int]]:
    slot = _mapping(value, f"{where}: an input or output")
    ids = _list(slot.get("linkIds"), f"{where}: linkIds")
    return (
        to_text(slot.get("name") or ""),
        slot.get("type"),
        [_number(link_id, f"{where}: a link id") for link_id in ids],
    )


def _graph(value: Mapping[str, Any], where: str) -> RawGraph:
    nodes = [_node(entry, where) for entry in _list(value.get("nodes"), f"{where}: nodes")]
    seen: set[str] = set()
    for node in nodes:
        if node.id in seen:
            raise WorkflowError(f"{where}: two nodes have the id {node.id}. {SAVE_AGAIN}")
        seen.add(node.id)
    return RawGraph(nodes, [_link(entry, where) for entry in _list(value.get("links"), f"{where}: links") if entry])


def _node(value: object, where: str) -> RawNode:
    node = _mapping(value, f"{where}: a node")
    node_id = _node_id(node.get("id"), f"{where}: a node's id")
    class_type = _text(node.get("type"), f"{where}: node {node_id}: type")
    here = f"{where}: node {node_id} ({class_type})"
    values = node.get("widgets_values")
    if values is not None and not isinstance(values, list | dict):
        raise _wrong(f"{here}: widgets_values", "a list", values)
    properties = node.get("properties")
    mode = node.get("mode")
    return RawNode(
        node_id,
        class_type,
        to_text(node.get("title") or ""),
        mode if isinstance(mode, int) else Mode.ALWAYS,
        _slots(node, "inputs", here),
        _slots(node, "outputs", here),
        values,
        dict(properties) if isinstance(properties, Mapping) else {},
    )


def _slots(node: Mapping[str, Any], side: str, where: str) -> list[RawSlot] | None:
    entries = node.get(side)
    if entries is None:
        return None
    slots = []
    for entry in _list(entries, f"{where}: {side}"):
        slot = _mapping(entry, f"{where}: one of its {side}")
        widget = slot.get("widget")
        link = slot.get("link") if side == "inputs" else None
        links = _list(slot.get("links"), f"{where}: links of an output") if side == "outputs" else []
        slots.append(
            RawSlot(
                to_text(slot.get("name") or ""),
                slot.get("type"),
                None if link is None else _number(link, f"{where}: a link"),
                [_number(link_id, f"{where}: a link") for link_id in links if link_id is not None],
                to_text(widget["name"]) if isinstance(widget, Mapping) and widget.get("name") else None,
            )
        )
    return slots


def _link(value: object, where: str) -> Link:
    here = f"{where}: a link"
    if isinstance(value, Mapping):
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        value = [value.get(key) for key in keys]
    parts = [*_list(value, here), None]
    if len(parts) < 6:
        raise _wrong(here, "[id, from node, from slot, to node, to slot, type]", value)
    return Link(
        _number(parts[0], here),
        _node_id(parts[1], here),
        _number(parts[2], here),
        _node_id(parts[3], here),
        _number(parts[4], here),
        parts[5],
    )


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(what, "an object", value)
    return value


def _list(value: object, what: str) -> Sequence[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(what, "a list", value)
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(what, "text", value)
    return value


def _number(value: object, what: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(what, "a whole number", value)
    return value


def _node_id(value: object, what: str) -> str:
    if not isinstance(value, int | float | str) or isinstance(value, bool) or value == "":
        raise _wrong(what, "a number or text", value)
    return to_text(value)


def _wrong(what: str, expected: str, value: object) -> WorkflowError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return WorkflowError(f"{what} should be {expected}, but is {shown}. {SAVE_AGAIN}")
