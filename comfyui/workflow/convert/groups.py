"""Legacy group nodes (`workflow>NAME`, defined in extra.groupNodes): loaded as one node, then turned into a subgraph.

Source of the rules: the frontend's groupNode.ts (GroupNodeConfig, convertToNodes) and LGraph.ts (convertToSubgraph):
the inner nodes take the next free ids, the subgraph node the one after them, and the group's values go to the inner
widgets. Three things are done better than there: links find their inputs by name, not by a place that lists of choices
shift; lists of choices keep the group's value too; and a muted or bypassed group stays so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.workflow.convert.model import (
    SUBGRAPH_INPUT_ID,
    SUBGRAPH_OUTPUT_ID,
    Graph,
    Link,
    Node,
    Output,
    Slot,
    Subgraph,
    SubgraphInput,
    SubgraphOutput,
    error_of,
    node_error,
)
from comfyui.workflow.convert.nodes import configure, new_node
from comfyui.workflow.convert.read import RawNode, read_inner_nodes
from comfyui.workflow.convert.specs import ClassLibrary, ClassSpec, InputSpec
from comfyui.workflow.convert.widgets import has_widget

GROUP_PREFIXES = ("workflow>", "workflow/")
Place = tuple[int, str]


@dataclass
class Group:
    """A kind of group node: its class as the frontend makes it up, and where its inputs and outputs lead."""

    spec: ClassSpec
    nodes: Sequence[RawNode]
    links: Sequence[Sequence[Any]]
    classes: Sequence[ClassSpec]
    inputs: Mapping[str, Place] = field(default_factory=dict)
    outputs: Sequence[tuple[int, int]] = ()


def group_specs(written: Mapping[str, Any], library: ClassLibrary) -> dict[str, Group]:
    """The kinds of group nodes that a file defines. A kind with a class that is not known is left out, as unknown."""
    groups = {name: _group(name, one, library) for name, one in written.items() if isinstance(one, Mapping)}
    return {name: group for name, group in groups.items() if group is not None}


def _group(name: str, written: Mapping[str, Any], library: ClassLibrary) -> Group | None:
    nodes = read_inner_nodes(written, f"group node {name}")
    classes = [spec for spec in (library.find(node.type) for node in nodes) if spec is not None]
    if len(classes) != len(nodes):
        return None
    links = [link for link in _entries(written.get("links")) if _is_inner(link, len(nodes))]
    outside = {(entry[0], entry[1]) for entry in _entries(written.get("external")) if len(entry) > 1}
    inputs, places = _inputs(nodes, classes, {(link[2], link[3]) for link in links})
    linked = {(link[0], link[1]) for link in links} - outside
    outputs = [
        (index, slot)
        for index, spec in enumerate(classes)
        for slot in range(len(spec.outputs))
        if (index, slot) not in linked
    ]
    spec = ClassSpec(f"workflow>{name}", name, inputs, inputs, [classes[node].outputs[slot] for node, slot in outputs])
    return Group(spec, nodes, links, classes, places, outputs)


def _entries(value: object) -> list[list[Any]]:
    return [entry for entry in value if isinstance(entry, list)] if isinstance(value, list) else []


def _is_inner(link: Sequence[Any], count: int) -> bool:
    """Whether a link joins two inner nodes: [from node, from slot, to node, to slot, …] by place."""
    numbers = [part for part in link[:4] if isinstance(part, int) and not isinstance(part, bool) and part >= 0]
    return len(numbers) == 4 and numbers[0] < count and numbers[2] < count


def _inputs(
    nodes: Sequence[RawNode], classes: Sequence[ClassSpec], linked: set[tuple[int, int]]
) -> tuple[list[InputSpec], dict[str, Place]]:
    """The group's inputs: what no inner link feeds. Widgets that were made inputs come last."""
    first: dict[str, InputSpec] = {}
    last: dict[str, InputSpec] = {}
    places: dict[str, Place] = {}
    seen: dict[str, int] = {}
    for index, (node, spec) in enumerate(zip(nodes, classes, strict=True)):
        written = [slot.name for slot in node.inputs or []]
        fed = {written[slot] for to, slot in linked if to == index and slot < len(written)}
        converted = {slot.name for slot in node.inputs or [] if slot.widget == slot.name}
        for one in spec.declared:
            if one.name in fed:
                continue
            name = _unique(one.name, node, seen)
            places[name] = index, one.name
            (last if one.name in converted and has_widget(one) else first)[name] = one.named(name)
    return [*first.values(), *last.values()], places


def _unique(name: str, node: RawNode, seen: dict[str, int]) -> str:
    key = unique = name
    if name in seen:
        key = unique = f"{node.title or node.type} {name}"
        if unique in seen:
            unique = f"{node.title or node.type} {seen[unique]} {name}"
    seen[key] = seen.get(key, 1) + 1
    return unique


def expand_groups(
    graph: Graph, last_node_id: int, groups: Mapping[str, Group], definitions: Mapping[str, Graph]
) -> None:
    """Replace every group node of the workflow by a subgraph node."""
    last = max([last_node_id, *(_number(node) for one in [graph, *definitions.values()] for node in one.nodes)])
    for node in list(graph.nodes.values()):
        group = groups.get(node.type[len("workflow>") :]) if node.type.startswith(GROUP_PREFIXES) else None
        if group is not None:
            last = _expand(graph, node, group, last)
    for one in definitions.values():
        for node in one.nodes.values():
            if node.type.startswith(GROUP_PREFIXES) and node.comfy_class is not None:
                raise error_of(node, "is a group node inside a subgraph; turn it into a subgraph in ComfyUI first.")


def _number(node_id: str) -> int:
    return int(node_id) if node_id.isascii() and node_id.isdigit() and len(node_id) < 16 else 0


def _expand(graph: Graph, node: Node, group: Group, last: int) -> int:
    inside = Subgraph(f"group {node.id}", "New Subgraph")
    members = []
    for raw, spec in zip(group.nodes, group.classes, strict=True):
        last += 1
        unlinked = RawNode(str(last), raw.type, raw.title, raw.mode, None, None, raw.widgets_values, raw.properties)
        member = new_node(inside, unlinked, spec)
        configure(member, unlinked, spec)
        inside.nodes[member.id] = member
        members.append(member)
    _hand_on_values(node, group, members)
    for link in group.links:
        name = _input_name(group.nodes[link[2]], members[link[2]], link[3])
        _connect(inside, members[link[0]].id, link[1], members[link[2]], name)
    last += 1
    host = Node(graph, str(last), inside.id, inside.name, node.mode, virtual=True, subgraph=inside)
    inside.hosts.append(host)
    _move_inputs(graph, node, group, host, members)
    _move_outputs(graph, node, group, host, members)
    # In the place of the group; a new node would stand last, which no prompt shows.
    graph.nodes = {one.id: one for one in [host if other is node else other for other in graph.nodes.values()]}
    return last


def _hand_on_values(node: Node, group: Group, members: Sequence[Node]) -> None:
    for name, (index, inner_name) in group.inputs.items():
        outer, inner = node.widget(name), members[index].widget(inner_name)
        if outer is not None and inner is not None:
            inner.set(outer.value)


def _input_name(written: RawNode, member: Node, place: int) -> str:
    """The name of the input at a place: as the group lists them, else as the class does."""
    names = [slot.name for slot in written.inputs or []]
    names += [slot.name for slot in member.inputs][len(names) :]
    return names[place] if place < len(names) else f"number {place}"


def _connect(graph: Graph, origin_id: str, origin_slot: int, target: Node, name: str) -> None:
    place = next((index for index, slot in enumerate(target.inputs) if slot.name == name), None)
    if place is None:
        raise node_error(target.id, target.title, target.type, f"has no input {name!r}, which its group links.")
    slot = target.inputs[place]
    slot.link = graph.new_link_id()
    graph.links[slot.link] = Link(slot.link, origin_id, origin_slot, target.id, place, slot.type)
    if origin_id in graph.nodes and origin_slot < len(graph.nodes[origin_id].outputs):
        graph.nodes[origin_id].outputs[origin_slot].links.append(slot.link)


def _move_inputs(graph: Graph, node: Node, group: Group, host: Node, members: Sequence[Node]) -> None:
    inside = host.subgraph
    for slot in node.inputs:
        link = graph.link(slot.link)
        if link is None or inside is None or slot.name not in group.inputs:
            continue
        index, inner_name = group.inputs[slot.name]
        source = SubgraphInput(slot.name, slot.type)
        _connect(inside, SUBGRAPH_INPUT_ID, len(inside.inputs), members[index], inner_name)
        source.link_ids.append(max(inside.links))
        inside.inputs.append(source)
        link.target_id, link.target_slot = host.id, len(host.inputs)
        host.inputs.append(Slot(slot.name, slot.type, link.id, source=source))


def _move_outputs(graph: Graph, node: Node, group: Group, host: Node, members: Sequence[Node]) -> None:
    inside = host.subgraph
    for output, (index, slot) in zip(node.outputs, group.outputs, strict=False):
        if inside is None:
            return
        link_id = inside.new_link_id()
        inside.links[link_id] = Link(
            link_id, members[index].id, slot, SUBGRAPH_OUTPUT_ID, len(inside.outputs), output.type
        )
        inside.outputs.append(SubgraphOutput(output.name, output.type, [link_id]))
        for outer in output.links:
            link = graph.link(outer)
            if link is not None:
                link.origin_id, link.origin_slot = host.id, len(host.outputs)
        host.outputs.append(Output(output.name, output.type, list(output.links)))
