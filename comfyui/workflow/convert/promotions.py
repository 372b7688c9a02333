"""Legacy promotions: `properties.proxyWidgets` of a subgraph node becomes inputs of its definition.

Each entry names an inner node and widget; the host's value for it stands at the entry's place in widgets_values.
Source of the rules: the frontend's proxyWidgetMigration.ts and promotionUtils.ts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comfyui.workflow.convert.javascript import UNSET
from comfyui.workflow.convert.model import Node, Slot, Subgraph, Widget
from comfyui.workflow.convert.nodes import PRIMITIVE
from comfyui.workflow.convert.primitives import linked_inputs
from comfyui.workflow.convert.subgraphs import add_subgraph_input, connect_subgraph_input, target_of

PREFIX = re.compile(r"\s*(\d+)\s*:\s*(.+)", re.ASCII)
DEEPEST = 100
Source = tuple[str, str]


@dataclass
class Entry:
    """One promotion: the inner node and widget, the host's value (UNSET for none), and what is to be done."""

    node_id: str
    widget_name: str
    through: str | None
    value: Any
    linked: Slot | None = None


def move_promotions(host: Node, values: list[Any] | dict[str, Any] | None) -> None:
    """Turn the proxyWidgets of a subgraph node into inputs, and give these the host's values."""
    definition = host.subgraph
    if definition is None:
        return
    written = _tuples(host.properties.pop("proxyWidgets", None))
    entries = [_entry(host, definition, one, _host_value(values, place)) for place, one in enumerate(written)]
    # All are looked up before the first one changes anything.
    for entry in entries:
        entry.linked = _linked_input(host, definition, entry) or _bypassed(host, definition, entry)
    primitives: dict[str, list[Entry]] = {}
    for entry in entries:
        node = definition.nodes.get(entry.node_id)
        if entry.linked is not None:
            _give(entry.linked, entry.value)
        elif node is not None and node.type == PRIMITIVE:
            primitives.setdefault(node.id, []).append(entry)
        elif node is not None:
            _add_input(host, definition, node, entry)
    for node_id, cohort in primitives.items():
        _replace_primitive(host, definition, definition.nodes[node_id], cohort)


def _tuples(written: object) -> list[list[str]]:
    """The entries, none at all if one of them is not two or three texts."""
    if isinstance(written, str):
        try:
            written = json.loads(written)
        except ValueError:
            return []
    entries = written if isinstance(written, list) else []
    sound = all(
        isinstance(entry, list) and len(entry) in {2, 3} and all(isinstance(part, str) for part in entry)
        for entry in entries
    )
    return entries if sound else []


def _host_value(values: list[Any] | dict[str, Any] | None, place: int) -> Any:
    if not isinstance(values, list) or place >= len(values) or values[place] is None:
        return UNSET
    return values[place]


def _entry(host: Node, definition: Subgraph, written: Sequence[str], value: Any) -> Entry:
    node_id, name = written[0], written[1]
    through = written[2] if len(written) > 2 else None
    if not _resolves(definition, node_id, name):
        while (match := PREFIX.fullmatch(name)) is not None:
            through, name = match[1], match[2]
    return Entry(node_id, name, through, value)


def _resolves(definition: Subgraph, node_id: str, name: str) -> bool:
    """Whether a promotion leads to a widget, through further subgraphs if need be."""
    for _ in range(DEEPEST):
        node = definition.nodes.get(node_id)
        if node is None:
            return False
        if node.subgraph is None:
            return node.widget(name) is not None
        target = _inner_target(node.subgraph, name)
        if target is None:
            return False
        definition, (node_id, name) = node.subgraph, target
    return False


def _inner_target(definition: Subgraph, input_name: str) -> Source | None:
    source = next((source for source in definition.inputs if source.name == input_name), None)
    return _first_source(definition, source.link_ids) if source is not None else None


def _first_source(definition: Subgraph, link_ids: Sequence[int]) -> Source | None:
    """The inner node and widget that an input of the definition stands for."""
    for link_id in link_ids:
        found = target_of(definition, link_id)
        if found is None:
            continue
        node, slot = found
        if node.subgraph is not None:
            return node.id, slot.name
        widget = node.widget_of(slot)
        if widget is not None:
            return node.id, widget.name
    return None


def _linked_input(host: Node, definition: Subgraph, entry: Entry) -> Slot | None:
    for slot in host.inputs:
        links = slot.source.link_ids if slot.source is not None else []
        if _first_source(definition, links) == (entry.node_id, entry.widget_name):
            return slot
    return None


def _bypassed(host: Node, definition: Subgraph, entry: Entry) -> Slot | None:
    """The input that another host's promotion made in place of a primitive."""
    node = definition.nodes.get(entry.node_id)
    name = node.properties.get("proxyBypassedToSubgraphInput") if node and node.type == PRIMITIVE else None
    return next((slot for slot in host.inputs if slot.name == name), None) if isinstance(name, str) else None


def _give(slot: Slot, value: Any) -> None:
    if slot.promoted is not None and value is not UNSET:
        slot.promoted.value = value


def _source_widget(node: Node, entry: Entry) -> Widget | None:
    if node.subgraph is None:
        return node.widget(entry.widget_name)
    for slot in node.inputs:
        target = _inner_target(node.subgraph, slot.name)
        if entry.through is not None:
            fits = target == (entry.through, entry.widget_name)
        else:
            fits = slot.name == entry.widget_name or (target is not None and target[1] == entry.widget_name)
        if fits:
            return slot.promoted
    return node.widget(entry.widget_name)


def _add_input(host: Node, definition: Subgraph, node: Node, entry: Entry) -> None:
    widget = _source_widget(node, entry)
    if widget is None or entry.widget_name.startswith("$$") or widget.kind == "audioUI":
        # Previews, and widgets that are no more: nothing of them is in a prompt.
        return
    slot = node.slot_of(widget)
    if slot is None:
        return
    source = add_subgraph_input(definition, entry.widget_name, slot.type)
    connect_subgraph_input(definition, source, node, slot)
    for own in host.inputs:
        if own.source is source:
            _give(own, entry.value)


def _replace_primitive(host: Node, definition: Subgraph, primitive: Node, cohort: Sequence[Entry]) -> None:
    """An input of the definition takes the place of a primitive, for every input that it was linked to."""
    if any(entry.widget_name != cohort[0].widget_name for entry in cohort) or not primitive.outputs:
        return
    kind = str(primitive.outputs[0].type or "*")
    targets = [(node, slot) for node, slot in linked_inputs(primitive) if slot is not None]
    if not targets or any(kind != slot.type and "*" not in {kind, slot.type} for _node, slot in targets):
        return
    name = primitive.title if primitive.title != PRIMITIVE else cohort[0].widget_name
    source = add_subgraph_input(definition, name, kind)
    for node, slot in targets:
        connect_subgraph_input(definition, source, node, slot)
    value = next((entry.value for entry in cohort if entry.value is not UNSET), UNSET)
    for own in host.inputs:
        if own.source is source:
            _give(own, value)
    primitive.properties["proxyBypassedToSubgraphInput"] = source.name
