"""Making the nodes of a graph and giving them what the file says of them.

Source of the rules: the frontend's litegraphService.ts (configure: inputs by name, outputs by place), LGraphNode.ts
(configure: widget values by place), litegraphUtil.ts (migrateWidgetsValues), rerouteNode.ts, noteNode.ts,
widgetInputs.ts (PrimitiveNode), customWidgets.ts (CustomCombo).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfyui.workflow.convert.dynamic import add_inputs, grow
from comfyui.workflow.convert.javascript import UNSET, is_truthy, to_text
from comfyui.workflow.convert.model import Graph, Node, Output, Slot, Widget
from comfyui.workflow.convert.read import RawNode, RawSlot
from comfyui.workflow.convert.specs import ClassSpec
from comfyui.workflow.convert.text import NAME_FOR_REPLACEMENT

PRIMITIVE = "PrimitiveNode"
REROUTE = "Reroute"
VIRTUAL_TITLES = {PRIMITIVE: "Primitive", REROUTE: "Reroute", "Note": "Note", "MarkdownNote": "Markdown Note"}
SAVE_CLASSES = {
    "SaveImage",
    "SaveImageAdvanced",
    "SaveSVGNode",
    "SaveVideo",
    "SaveAnimatedWEBP",
    "SaveWEBM",
    "SaveAudio",
    "SaveAudioMP3",
    "SaveAudioOpus",
    "SaveAudioAdvanced",
    "SaveGLB",
    "Save3DAdvanced",
    "SaveGaussianSplat",
    "SavePointCloud",
    "SaveAnimatedPNG",
    "CLIPSave",
    "VAESave",
    "ModelSave",
    "LoraSave",
    "SaveLatent",
}
"""Classes whose filename_prefix is searched for %…% (saveImageExtraOutput.ts)."""


def new_node(graph: Graph, raw: RawNode, spec: ClassSpec | None) -> Node:
    """A node as it is before the file's content reaches it; `spec` is None for virtual and for unknown classes."""
    title = raw.title or (spec.title if spec else VIRTUAL_TITLES.get(raw.type, raw.type))
    node = Node(graph, raw.id, raw.type, title)
    if spec is None:
        node.virtual = raw.type in VIRTUAL_TITLES
        if raw.type == REROUTE:
            node.inputs, node.outputs = [Slot("", "*")], [Output("", "*")]
        elif raw.type == PRIMITIVE:
            node.outputs = [Output("connect to widget input", "*")]
        return node
    node.comfy_class = spec.name
    node.output_matches = spec.output_matches
    add_inputs(node, spec.inputs)
    node.outputs = [Output(name, kind) for name, kind in spec.outputs]
    if spec.name == "CustomCombo":
        _add_options(node)
    prefix = node.widget("filename_prefix") if spec.name in SAVE_CLASSES else None
    if prefix is not None:
        prefix.replaces = True
    node.complete = True
    if spec.name not in SAVE_CLASSES:
        node.properties[NAME_FOR_REPLACEMENT] = spec.name
    return node


def configure(node: Node, raw: RawNode, spec: ClassSpec | None) -> None:
    """Give a node what the file says of it: mode, properties, links, values."""
    node.mode = raw.mode
    node.properties |= raw.properties
    if spec is None:
        _configure_plain(node, raw)
        return
    values = _without_forced(spec, node, raw.widgets_values)
    _configure_inputs(node, raw.inputs or [])
    _configure_outputs(node, raw.outputs or [])
    index = 0
    while index < len(node.inputs):
        if node.graph.link(node.inputs[index].link) is not None:
            grow(node, index)
        index += 1
    set_values(node, values)


def _configure_plain(node: Node, raw: RawNode) -> None:
    slots = [Slot(slot.name, slot.type, slot.link, slot.widget) for slot in raw.inputs or []]
    outputs = [Output(slot.name, slot.type, list(slot.links)) for slot in raw.outputs or []]
    node.inputs = slots + node.inputs[len(slots) :]
    node.outputs = outputs + node.outputs[len(outputs) :]
    if isinstance(raw.widgets_values, list):
        node.stored_values = raw.widgets_values


def _configure_inputs(node: Node, raw: Sequence[RawSlot]) -> None:
    """Links by name; an input that the class does not have stays behind its own, as custom nodes add them."""
    written = {slot.name: slot for slot in raw}
    own = {slot.name for slot in node.inputs}
    for slot in node.inputs:
        if slot.name in written:
            slot.link = written[slot.name].link
    node.inputs += [Slot(slot.name, slot.type, slot.link, slot.widget) for slot in raw if slot.name not in own]


def _configure_outputs(node: Node, raw: Sequence[RawSlot]) -> None:
    for output, slot in zip(node.outputs, raw, strict=False):
        output.links = list(slot.links)
    node.outputs += [Output(slot.name, slot.type, list(slot.links)) for slot in raw[len(node.outputs) :]]


def _without_forced(
    spec: ClassSpec, node: Node, values: list[Any] | dict[str, Any] | None
) -> list[Any] | dict[str, Any] | None:
    """The values without those of inputs that once were widgets and are sockets now (before frontend 1.16)."""
    if not isinstance(values, list):
        return values
    names = {widget.name for widget in node.widgets}
    dropped: list[bool] = []
    for declared in spec.declared:
        if declared.name in names or declared.forced_input:
            dropped.append(declared.forced_input)
            if is_truthy(declared.options.get("control_after_generate")):
                dropped.append(False)
    if len(dropped) != len(values):
        return values
    return [value for value, drop in zip(values, dropped, strict=True) if not drop]


def set_values(node: Node, values: list[Any] | dict[str, Any] | None) -> None:
    """Hand the values of the file to the widgets, by place. A widget may bring others, which come next.

    An object instead of a list has no length, so every widget takes what it has under its place's number: mostly
    nothing.
    """
    if values is None:
        return
    place = index = 0
    while index < len(node.widgets):
        widget = node.widgets[index]
        index += 1
        if not widget.in_file:
            continue
        if isinstance(values, dict):
            widget.set(values.get(str(place), UNSET))
        elif place >= len(values):
            break
        else:
            widget.set(values[place])
        place += 1


def _add_options(node: Node) -> None:
    """CustomCombo: option1, option2, … are its choices; there is always an empty one at the end."""
    choice = node.own_widgets[0]

    def options() -> list[Widget]:
        return [widget for widget in node.own_widgets if widget.name.startswith("option")]

    def refresh() -> None:
        choice.choices = [to_text(widget.value) for widget in options() if is_truthy(widget.value)]
        places = [place for place, widget in enumerate(node.own_widgets[2:]) if widget.value == choice.value]
        index.value = places[0] if places else -1

    def add() -> None:
        widget = Widget(f"option{len(node.own_widgets) - 1}", "string", "")

        def changed(value: Any) -> None:
            refresh()
            if node.own_widgets[-1] is widget and is_truthy(value):
                add()

        widget.on_set = changed
        node.own_widgets.append(widget)

    index = Widget("index", "hidden", -1, fixed=True)
    node.own_widgets.append(index)
    choice.on_set = lambda _value: refresh()
    add()
