"""Subgraph definitions and the nodes that stand for them: ids, order of loading, promoted widgets.

Source of the rules: the frontend's subgraphDeduplication.ts, SubgraphNode.ts (configure, _resolveInputWidget,
_setWidget, _applyPromotedWidgetValues) and SubgraphInput.ts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.workflow.convert.javascript import UNSET
from comfyui.workflow.convert.model import Link, Node, Slot, Subgraph, SubgraphInput, Widget
from comfyui.workflow.convert.nodes import set_values
from comfyui.workflow.convert.read import RawNode, RawSubgraph, RawWorkflow

QUARANTINE = "proxyWidgetErrorQuarantine"


def renumber_nodes(workflow: RawWorkflow) -> None:
    """Give inner nodes whose id is taken elsewhere the next free one; links and legacy promotions follow."""
    taken = {node.id for node in workflow.nodes if _is_number(node.id)}
    last = workflow.last_node_id
    new_ids: dict[str, dict[str, str]] = {}
    for subgraph in workflow.subgraphs:
        changed = new_ids.setdefault(subgraph.id, {})
        for node in subgraph.nodes:
            if node.id in taken:
                last += 1
                while str(last) in taken:
                    last += 1
                changed[node.id] = node.id = str(last)
            elif _is_number(node.id):
                last = max(last, int(node.id))
            taken.add(node.id)
        _move_links(subgraph.links, changed)
    for owner in [workflow, *workflow.subgraphs]:
        for node in owner.nodes:
            _move_promotions(node, new_ids.get(node.type, {}))
    workflow.last_node_id = last


def _is_number(node_id: str) -> bool:
    return re.fullmatch(r"0|-?[1-9]\d{0,15}", node_id) is not None


def _move_links(links: Sequence[Link], changed: Mapping[str, str]) -> None:
    for link in links:
        link.origin_id = changed.get(link.origin_id, link.origin_id)
        link.target_id = changed.get(link.target_id, link.target_id)


def _move_promotions(node: RawNode, changed: Mapping[str, str]) -> None:
    entries = node.properties.get("proxyWidgets")
    if changed and isinstance(entries, list):
        node.properties["proxyWidgets"] = [
            [changed.get(str(entry[0]), entry[0]), *entry[1:]] if isinstance(entry, list) and entry else entry
            for entry in entries
        ]


def inner_first(subgraphs: Sequence[RawSubgraph]) -> list[RawSubgraph]:
    """The definitions ordered so that one comes behind those it uses; a circle leaves the file's order."""
    by_id = {subgraph.id: subgraph for subgraph in subgraphs}
    waits_for = {key: [node.type for node in one.nodes if node.type in by_id] for key, one in by_id.items()}
    ready = [key for key, needed in waits_for.items() if not needed]
    ordered: list[RawSubgraph] = []
    while ready:
        done = ready.pop(0)
        ordered.append(by_id[done])
        for key, needed in waits_for.items():
            if done in needed:
                needed[:] = [other for other in needed if other != done]
                if not needed:
                    ready.append(key)
    return ordered if len(ordered) == len(by_id) else list(by_id.values())


def configure_host(node: Node, raw: RawNode, definition: Subgraph) -> None:
    """Give a subgraph node its slots, links and the values of its promoted widgets."""
    written = {slot.name: slot for slot in raw.inputs or []}
    node.mode = raw.mode
    node.properties |= raw.properties
    outputs = raw.outputs or []
    for output, slot in zip(node.outputs, outputs, strict=False):
        output.links = list(slot.links)
    for slot_in in node.inputs:
        if slot_in.name in written:
            slot_in.link = written[slot_in.name].link
        if slot_in.source is not None:
            promote(node, slot_in, definition)
    set_values(node, raw.widgets_values)
    _restore_quarantined(node)


def promote(host: Node, slot: Slot, definition: Subgraph) -> None:
    """Give an input of a subgraph node the widget that the first linked inner input has, with that one's value."""
    for link_id in slot.source.link_ids if slot.source is not None else []:
        found = target_of(definition, link_id)
        if found is None:
            continue
        inner, target = found
        widget = inner.widget_of(target)
        if widget is not None:
            set_promoted(slot, widget, target)
            return


def set_promoted(slot: Slot, inner: Widget, target: Slot) -> None:
    """Make the promoted widget of `slot`, a copy of the inner one: it is sent raw, whatever the inner one does."""
    slot.widget = slot.name
    slot.spec = target.spec
    if slot.promoted is None or slot.promoted.kind != inner.kind:
        # A host keeps the values in a store of its own, which takes null also for a textarea.
        kind = "promoted text" if inner.kind == "customtext" else inner.kind
        slot.promoted = Widget(slot.name, kind, inner.value, choices=inner.choices)


def target_of(definition: Subgraph, link_id: int) -> tuple[Node, Slot] | None:
    """The inner node and input at the end of a link."""
    link = definition.link(link_id)
    node = definition.nodes.get(link.target_id) if link is not None else None
    if node is None:
        return None
    slot = next((slot for slot in node.inputs if slot.link == link_id), None)
    return None if slot is None else (node, slot)


def _restore_quarantined(node: Node) -> None:
    """Values that an earlier load of the file could not place; those of the host itself are put back."""
    entries = node.properties.get(QUARANTINE)
    for entry in reversed(entries) if isinstance(entries, list) else ():
        original = entry.get("originalEntry") if isinstance(entry, Mapping) else None
        if not isinstance(original, list) or len(original) < 2 or original[0] != "-1":
            continue
        value: Any = entry.get("hostValue", UNSET)
        slot = next((slot for slot in node.inputs if slot.name == original[1]), None)
        if slot is not None and slot.promoted is not None and value is not UNSET and value is not None:
            slot.promoted.value = value


def add_subgraph_input(definition: Subgraph, name: str, kind: Any) -> SubgraphInput:
    """A new input of a definition, with a name of its own, on every node that stands for it."""
    names = {source.name for source in definition.inputs}
    unique, number = name, 1
    while unique in names:
        unique, number = f"{name}_{number}", number + 1
    source = SubgraphInput(unique, kind)
    definition.inputs.append(source)
    for host in definition.hosts:
        host.inputs.append(Slot(unique, kind, source=source))
    return source


def connect_subgraph_input(definition: Subgraph, source: SubgraphInput, node: Node, slot: Slot) -> None:
    """Link an input of a definition to an inner input, whose widget every host then shows."""
    if slot.link is not None:
        _leave_subgraph_input(definition, slot.link)
        definition.disconnect(slot)
    widget = node.widget_of(slot)
    link_id = definition.new_link_id()
    place = next(index for index, other in enumerate(node.inputs) if other is slot)
    origin = definition.inputs.index(source)
    definition.links[link_id] = Link(link_id, "-10", origin, node.id, place, slot.type)
    source.link_ids.append(link_id)
    slot.link = link_id
    if widget is not None:
        for host in definition.hosts:
            for own in host.inputs:
                if own.source is source:
                    set_promoted(own, widget, slot)


def _leave_subgraph_input(definition: Subgraph, link_id: int) -> None:
    for source in definition.inputs:
        if link_id not in source.link_ids:
            continue
        source.link_ids.remove(link_id)
        for host in definition.hosts:
            for own in host.inputs:
                if own.source is source and not source.link_ids:
                    own.promoted = own.widget = None
