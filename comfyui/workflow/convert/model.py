"""The graph that a workflow file describes: nodes with slots and widgets, links, subgraphs.

    file ──read──► raw records ──load──► Graph (this module) ──prompt──► API format

The frontend decides most of a prompt while it loads the file, so a graph here is changed in place as it is loaded.
The names follow litegraph's. Not for: reading the file, or any rule of conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from comfyui.errors import NodeProblem, WorkflowError
from comfyui.workflow.convert.javascript import UNSET
from comfyui.workflow.convert.specs import InputSpec

MOST_NODES = 100_000
"""Subgraphs in subgraphs multiply: ten levels of ten are more nodes than any machine takes."""
SUBGRAPH_INPUT_ID = "-10"
SUBGRAPH_OUTPUT_ID = "-20"


class Mode(IntEnum):
    """What running a workflow does with a node; litegraph's other modes count as ALWAYS in a prompt."""

    ALWAYS = 0
    MUTED = 2
    BYPASSED = 4


@dataclass(eq=False)
class Widget:
    """One value that a person can set on a node.

    `in_prompt` and `in_file` say where it is written: a control_after_generate is in the file only, a preview in
    neither. `snap` is what a number does when something other than the file sets it; `on_set` follows every change.
    """

    name: str
    kind: str
    value: Any = UNSET
    in_prompt: bool = True
    in_file: bool = True
    choices: Sequence[Any] = ()
    snap: Callable[[Any], Any] | None = None
    on_set: Callable[[Any], None] | None = None
    fixed: bool = False
    expands: bool = False
    replaces: bool = False
    limits: tuple[Any, Any] = (None, None)

    def set(self, value: Any) -> None:
        """Take a value as the file has it, unrounded. A textarea has no null: it becomes empty."""
        if self.fixed:
            return
        self.value = "" if value is None and self.kind == "customtext" else value
        if self.on_set is not None:
            self.on_set(self.value)

    def push(self, value: Any) -> None:
        """Take a value from another node, as PrimitiveNode gives it: numbers snap to the widget's step."""
        self.set(value)
        if self.snap is not None:
            self.value = self.snap(value)


@dataclass(eq=False)
class Slot:
    """An input of a node; `widget` names the widget it stands for, `promoted` is a subgraph node's own widget."""

    name: str
    type: Any
    link: int | None = None
    widget: str | None = None
    spec: InputSpec | None = None
    source: SubgraphInput | None = None
    promoted: Widget | None = None


@dataclass(eq=False)
class Output:
    """An output of a node with the ids of the links that start there."""

    name: str
    type: Any
    links: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Link:
    """A connection; `target_slot` is kept equal to the place of the input that names the link."""

    id: int
    origin_id: str
    origin_slot: int
    target_id: str
    target_slot: int
    type: Any


@dataclass(eq=False)
class Node:
    """A node of any kind. `comfy_class` is None where this ComfyUI has no such class; virtual nodes never run.

    `complete` is set once the node is made: what comes later comes with a value or a link of the file.
    """

    graph: Graph
    id: str
    type: str
    title: str
    mode: int = Mode.ALWAYS
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    own_widgets: list[Widget] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)
    comfy_class: str | None = None
    virtual: bool = False
    subgraph: Subgraph | None = None
    autogrow: dict[str, AutogrowGroup] = field(default_factory=dict)
    match_types: dict[str, dict[str, str]] = field(default_factory=dict)
    output_matches: Sequence[str | None] = ()
    stored_values: list[Any] = field(default_factory=list)
    complete: bool = False

    @property
    def widgets(self) -> list[Widget]:
        """The node's widgets in order; those of a subgraph node are its promoted inputs."""
        if self.subgraph is None:
            return self.own_widgets
        return [slot.promoted for slot in self.inputs if slot.promoted is not None]

    def widget(self, name: str) -> Widget | None:
        """The first widget of that name."""
        return next((widget for widget in self.widgets if widget.name == name), None)

    def widget_of(self, slot: Slot) -> Widget | None:
        """The widget that an input stands for."""
        if slot.promoted is not None:
            return slot.promoted
        return None if slot.widget is None else self.widget(slot.widget)

    def slot_of(self, widget: Widget) -> Slot | None:
        """The input that stands for a widget."""
        for slot in self.inputs:
            if slot.promoted is widget or (slot.widget is not None and slot.widget == widget.name):
                return slot
        return None

    def remove_input(self, index: int) -> None:
        """Take an input away, its link with it; the links of those behind it move up."""
        slot = self.inputs[index]
        if slot.link is not None:
            self.graph.disconnect(slot)
        del self.inputs[index]
        for later in self.inputs[index:]:
            link = None if later.link is None else self.graph.links.get(later.link)
            if link is not None:
                link.target_slot -= 1


@dataclass(eq=False)
class AutogrowGroup:
    """A family of inputs that grows while it is used: `images.image0`, `images.image1`, …"""

    name: str
    specs: Sequence[InputSpec]
    least: int
    most: int
    prefix: str
    names: Sequence[str] | None


class Graph:
    """Nodes in the file's order, by id, and links by id."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.links: dict[int, Link] = {}

    def link(self, link_id: int | None) -> Link | None:
        """The link of that id, if there is one."""
        return None if link_id is None else self.links.get(link_id)

    def new_link_id(self) -> int:
        """An id that no link has."""
        return max(self.links, default=0) + 1

    def disconnect(self, slot: Slot) -> None:
        """Take away the link that ends at `slot`."""
        link = self.link(slot.link)
        slot.link = None
        if link is None:
            return
        del self.links[link.id]
        origin = self.nodes.get(link.origin_id)
        if origin is not None and 0 <= link.origin_slot < len(origin.outputs):
            links = origin.outputs[link.origin_slot].links
            links[:] = [link_id for link_id in links if link_id != link.id]


@dataclass(eq=False)
class SubgraphInput:
    """An input of a subgraph definition; `link_ids` are the links from it to nodes inside."""

    name: str
    type: Any
    link_ids: list[int] = field(default_factory=list)


@dataclass(eq=False)
class SubgraphOutput:
    """An output of a subgraph definition; the first of `link_ids` counts."""

    name: str
    type: Any
    link_ids: list[int] = field(default_factory=list)


class Subgraph(Graph):
    """A definition that subgraph nodes share; `hosts` are the nodes that stand for it."""

    def __init__(self, subgraph_id: str, name: str) -> None:
        super().__init__()
        self.id = subgraph_id
        self.name = name
        self.inputs: list[SubgraphInput] = []
        self.outputs: list[SubgraphOutput] = []
        self.hosts: list[Node] = []


def walk(graph: Graph, inside: Sequence[Graph] = ()) -> list[Node]:
    """Every node of a graph and of the subgraphs in it, a subgraph's before the node that stands for it.

    A shared definition is met once for each node that uses it, as in the frontend (graphTraversalUtil.ts).
    """
    if graph in inside:
        raise WorkflowError(
            "workflow_json has a subgraph that contains itself, so it has no end; take it out of itself."
        )
    nodes: list[Node] = []
    for node in graph.nodes.values():
        if node.subgraph is not None:
            nodes += walk(node.subgraph, [*inside, graph])
        nodes.append(node)
        if len(nodes) > MOST_NODES:
            raise WorkflowError(
                f"workflow_json unfolds into more than {MOST_NODES} nodes, because its subgraphs use each other many "
                "times; use fewer."
            )
    return nodes


def node_error(node_id: str, title: str, class_type: str, text: str, *, kind: str = "conversion") -> WorkflowError:
    """A refusal that names the node; `text` goes on after its name."""
    named = f" {title!r}" if title and title != class_type else ""
    problem = NodeProblem(node_id, title, class_type, None, kind, text)
    return WorkflowError(f"Node {node_id}{named} ({class_type}) {text}", problems=[problem])


def error_of(node: Node, text: str, *, kind: str = "conversion", path: str = "") -> WorkflowError:
    """A refusal that names a node of the graph; `path` is its id in the prompt, if that is known."""
    class_type = "subgraph" if node.subgraph is not None else node.type
    return node_error(path or node.id, node.title, class_type, text, kind=kind)
