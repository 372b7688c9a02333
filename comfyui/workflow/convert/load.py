"""Loading a file into a graph, in the frontend's order: most of what a prompt says is decided on the way.

    renumber inner ids ─► inner definitions first: make nodes, configure them, move legacy promotions
                       ─► the same for the workflow itself ─► mend slots ─► primitives ─► lists without a value

Source of the rules: the frontend's LGraph.ts (configure), app.ts (loadGraphData), widgetInputs.ts
(onGraphConfigured), litegraphUtil.ts (fixLinkInputSlots).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfyui.workflow.convert.dynamic import renumber, settle_types
from comfyui.workflow.convert.groups import GROUP_PREFIXES, expand_groups, group_specs
from comfyui.workflow.convert.javascript import is_missing
from comfyui.workflow.convert.model import Graph, Node, Output, Slot, Subgraph, walk
from comfyui.workflow.convert.nodes import configure, new_node
from comfyui.workflow.convert.primitives import prepare_primitive
from comfyui.workflow.convert.promotions import move_promotions
from comfyui.workflow.convert.read import RawGraph, RawNode, read_workflow
from comfyui.workflow.convert.specs import ClassLibrary, ClassSpec
from comfyui.workflow.convert.subgraphs import configure_host, inner_first, renumber_nodes

KSAMPLERS = {"KSampler", "KSamplerAdvanced"}


def load(ui: Mapping[str, Any], library: ClassLibrary) -> Graph:
    """The graph of a workflow file as it stands once the frontend has loaded it."""
    raw = read_workflow(ui)
    groups = group_specs(raw.group_nodes, library)
    renumber_nodes(raw)
    definitions: dict[str, Subgraph] = {}
    for one in raw.subgraphs:
        definitions[one.id] = Subgraph(one.id, one.name)
        definitions[one.id].inputs, definitions[one.id].outputs = one.inputs, one.outputs
    loader = _Loader(library, definitions, {name: group.spec for name, group in groups.items()})
    for one in inner_first(raw.subgraphs):
        loader.fill(definitions[one.id], one)
    graph = Graph()
    loader.fill(graph, raw)
    every = walk(graph)
    _mend(every)
    expand_groups(graph, raw.last_node_id, groups, definitions)
    for node in walk(graph):
        settle_types(node, _origin_types(node))
    return graph


class _Loader:
    def __init__(
        self, library: ClassLibrary, definitions: Mapping[str, Subgraph], groups: Mapping[str, ClassSpec]
    ) -> None:
        self._library = library
        self._definitions = definitions
        self._groups = groups

    def fill(self, graph: Graph, raw: RawGraph) -> None:
        """Make and configure the nodes of one graph. All are there before the first is configured."""
        graph.links = {link.id: link for link in raw.links}
        for node in raw.nodes:
            graph.nodes[node.id] = self._make(graph, node)
        for node in raw.nodes:
            made = graph.nodes[node.id]
            if made.subgraph is not None:
                configure_host(made, node, made.subgraph)
            else:
                configure(made, node, self._spec(node))
        for node in raw.nodes:
            move_promotions(graph.nodes[node.id], node.widgets_values)

    def _spec(self, raw: RawNode) -> ClassSpec | None:
        if raw.type.startswith(GROUP_PREFIXES):
            return self._groups.get(raw.type.split(raw.type[len("workflow")], 1)[1])
        return self._library.find(raw.type)

    def _make(self, graph: Graph, raw: RawNode) -> Node:
        definition = self._definitions.get(raw.type)
        if definition is None:
            return new_node(graph, raw, self._spec(raw))
        host = Node(graph, raw.id, raw.type, raw.title or definition.name, virtual=True, subgraph=definition)
        host.inputs = [Slot(source.name, source.type, source=source) for source in definition.inputs]
        host.outputs = [Output(target.name, target.type) for target in definition.outputs]
        definition.hosts.append(host)
        return host


def _mend(nodes: Iterable[Node]) -> None:
    """What happens once after everything is configured, inner nodes first."""
    every = list(dict.fromkeys(nodes))
    for node in every:
        renumber(node)
    for node in every:
        if node.comfy_class is not None:
            _drop_widgetless_inputs(node)
    for node in every:
        prepare_primitive(node)
    for node in every:
        _mend_values(node)


def _drop_widgetless_inputs(node: Node) -> None:
    """An input that stands for a widget which the node has not is taken away; the one behind it is not looked at."""
    index = 0
    while index < len(node.inputs):
        slot = node.inputs[index]
        if slot.widget is not None and node.widget_of(slot) is None:
            node.remove_input(index)
        index += 1


def _mend_values(node: Node) -> None:
    """A list without a value takes its first choice; samplers of old files lose a prefix."""
    for widget in list(node.widgets):
        old_name = node.type in KSAMPLERS and widget.name == "sampler_name" and isinstance(widget.value, str)
        if old_name and widget.value.startswith("sample_"):
            widget.value = widget.value.removeprefix("sample_")
        if widget.kind == "combo" and widget.choices and is_missing(widget.value):
            widget.set(widget.choices[0])


def _origin_types(node: Node) -> dict[int, Any]:
    types: dict[int, Any] = {}
    for slot in node.inputs if node.match_types else ():
        link = node.graph.link(slot.link)
        origin = node.graph.nodes.get(link.origin_id) if link is not None else None
        if link is not None and origin is not None and 0 <= link.origin_slot < len(origin.outputs):
            types[link.id] = origin.outputs[link.origin_slot].type
        elif link is not None and isinstance(node.graph, Subgraph) and link.origin_slot < len(node.graph.inputs):
            types[link.id] = node.graph.inputs[link.origin_slot].type
    return types
