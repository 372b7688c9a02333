"""Inputs that a node gains and loses: lists that bring inputs of their own, families that grow, types that match.

    COMFY_DYNAMICCOMBO_V3   `combo`, then `combo.sub` of the chosen option
    COMFY_AUTOGROW_V3       `images.image0`, `images.image1`, …: one more than are linked
    COMFY_MATCHTYPE_V3      one type for several inputs and outputs

Source of the rules: the frontend's core/graph/widgets/dynamicWidgets.ts and litegraphService.ts (addInputs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.workflow.convert.javascript import UNSET, in_key_order, is_truthy, to_text
from comfyui.workflow.convert.model import AutogrowGroup, Node, Slot, Widget
from comfyui.workflow.convert.specs import InputSpec, read_inputs
from comfyui.workflow.convert.widgets import has_widget, make_widgets

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
MATCH_TYPE = "COMFY_MATCHTYPE_V3"


def add_inputs(node: Node, specs: Sequence[InputSpec]) -> None:
    """Give a new node its inputs: first all plain sockets, then the widgets with theirs."""
    for spec in specs:
        _add_socket(node, spec)
    for spec in specs:
        _add_widget(node, spec)


def _add_input(node: Node, spec: InputSpec) -> None:
    _add_socket(node, spec)
    _add_widget(node, spec)


def _add_socket(node: Node, spec: InputSpec) -> None:
    if has_widget(spec) and not spec.forced_input:
        return
    if spec.type == AUTOGROW:
        _add_autogrow(node, spec)
    elif spec.type == MATCH_TYPE:
        _add_match_type(node, spec)
    else:
        node.inputs.append(Slot(spec.name, spec.type))


def _add_widget(node: Node, spec: InputSpec) -> None:
    if not has_widget(spec) or spec.forced_input:
        return
    if spec.widget_type == DYNAMIC_COMBO:
        _add_dynamic_combo(node, spec)
    else:
        widgets = make_widgets(node, spec)
        for widget in widgets:
            # The extension for dynamic prompts looks at a node once, when it is made (dynamicPrompts.ts).
            widget.expands = widget.expands and not node.complete
        node.own_widgets += widgets
    if not spec.options.get("socketless"):
        node.inputs.append(Slot(spec.name, spec.type, widget=spec.name, spec=spec))


def _add_dynamic_combo(node: Node, spec: InputSpec) -> None:
    entries = [entry for entry in spec.options.get("options") or () if isinstance(entry, Mapping)]
    options = {str(entry.get("key")): entry.get("inputs") or {} for entry in entries}
    keys = in_key_order(options)
    widget = Widget(spec.name, "combo", keys[0] if keys else UNSET, choices=keys)
    node.own_widgets.append(widget)

    def rebuild(value: Any) -> None:
        _remove_group(node, widget, options.get(to_text(value)) if is_truthy(value) else None)

    rebuild(widget.value)
    widget.on_set = rebuild


def _remove_group(node: Node, widget: Widget, chosen: Mapping[str, Any] | None) -> None:
    """Replace the inputs and widgets below a dynamic combo by those of the chosen option; links go over by name."""
    prefix = f"{widget.name}."
    old_inputs = [slot for slot in node.inputs if slot.name.startswith(prefix)]
    node.inputs[:] = [slot for slot in node.inputs if not slot.name.startswith(prefix)]
    node.own_widgets[:] = [other for other in node.own_widgets if not other.name.startswith(prefix)]
    if chosen is None:
        return
    widgets_before, inputs_before = len(node.own_widgets), len(node.inputs)
    for group, optional in (("required", False), ("optional", True)):
        for spec in read_inputs(chosen.get(group) or {}, optional=optional):
            _add_input(node, spec.named(prefix + spec.name))
    new_widgets = node.own_widgets[widgets_before:]
    del node.own_widgets[widgets_before:]
    at = next(index for index, other in enumerate(node.own_widgets) if other is widget) + 1
    node.own_widgets[at:at] = new_widgets
    place = next((index for index, slot in enumerate(node.inputs) if slot.name == widget.name), None)
    if place is None:
        # While the node is made its combo has no socket yet; what was added stays where it is.
        return
    new_inputs = node.inputs[inputs_before:]
    del node.inputs[inputs_before:]
    node.inputs[place + 1 : place + 1] = new_inputs
    renumber(node)
    for slot in old_inputs:
        _take_over_link(node, slot)


def _take_over_link(node: Node, old: Slot) -> None:
    index = next((index for index, slot in enumerate(node.inputs) if slot.name == old.name), None)
    if index is None:
        node.graph.disconnect(old)
        return
    node.inputs[index].link = old.link
    link = node.graph.link(old.link)
    if link is not None:
        link.target_slot = index
        grow(node, index)


def renumber(node: Node) -> None:
    """Tell the links that end at a node the places of their inputs."""
    for index, slot in enumerate(node.inputs):
        link = node.graph.link(slot.link)
        if link is not None:
            link.target_slot = index


def _add_autogrow(node: Node, spec: InputSpec) -> None:
    template = spec.options.get("template") or {}
    inputs = template.get("input") or {}
    specs = [*read_inputs(inputs.get("required") or {}), *read_inputs(inputs.get("optional") or {}, optional=True)]
    names = template.get("names")
    least = template.get("min")
    group = AutogrowGroup(
        spec.name,
        specs,
        1 if least is None else least,
        len(names) if names else template.get("max") or 100,
        template.get("prefix") or "",
        names,
    )
    node.autogrow[spec.name] = group
    for ordinal in range(max(1, group.least + 1)):
        _add_autogrow_member(node, group, ordinal)


def _member_name(group: AutogrowGroup, ordinal: int, key: str) -> str:
    if group.names is not None:
        # One before the first has no name; the frontend then looks for "undefined" and finds nothing.
        base = str(group.names[ordinal]) if 0 <= ordinal < len(group.names) else "undefined"
    else:
        base = f"{group.prefix if len(group.specs) == 1 else key}{ordinal}"
    return f"{group.name}.{base}"


def _add_autogrow_member(node: Node, group: AutogrowGroup, ordinal: int) -> None:
    if ordinal >= group.most or not group.specs:
        return
    new: list[Slot] = []
    for spec in group.specs:
        name = _member_name(group, ordinal, spec.name)
        before = len(node.inputs)
        known = node.widget(name)
        if known is None:
            _add_input(node, spec.named(name, optional=ordinal >= group.least or spec.optional))
        else:
            # The frontend lists the widget a second time, so it takes a second place in the file; both share a value.
            node.own_widgets.append(known)
            node.inputs.append(Slot(name, spec.type, widget=name, spec=spec))
        new += node.inputs[before:]
        del node.inputs[before:]
    for slot in new:
        for old in [other for other in node.inputs if other.name == slot.name]:
            slot.link = old.link if slot.link is None else slot.link
            node.inputs.remove(old)
    before_it = _member_name(group, ordinal - 1, group.specs[-1].name)
    places = [index for index, slot in enumerate(node.inputs) if slot.name.startswith(before_it)]
    at = places[-1] + 1 if places else len(node.inputs)
    node.inputs[at:at] = new
    renumber(node)


def grow(node: Node, index: int) -> None:
    """An input was linked: if it is one of a family, there is a next one."""
    name = node.inputs[index].name
    group = node.autogrow.get(name.rpartition(".")[0])
    if group is None:
        return
    own = name[len(group.name) + 1 :]
    if group.names is not None:
        ordinal = list(group.names).index(own) if own in group.names else None
    else:
        digits = re.search(r"\d{1,9}$", own, re.ASCII)
        ordinal = int(digits[0]) if digits else None
    if ordinal is not None:
        _add_autogrow_member(node, group, ordinal + 1)


def _add_match_type(node: Node, spec: InputSpec) -> None:
    template = spec.options.get("template") or {}
    allowed, key = str(template.get("allowed_types") or "*"), str(template.get("template_id") or "")
    _add_input(node, InputSpec(spec.name, allowed, spec.options, None, spec.optional))
    node.match_types.setdefault(key, {})[spec.name] = allowed


def settle_types(node: Node, origin_type: Mapping[int, Any]) -> None:
    """Give matching inputs and outputs the type of what is linked; `origin_type` is by link id."""
    for key, allowed in node.match_types.items():
        slots = [slot for slot in node.inputs if slot.name in allowed]
        linked = [str(origin_type.get(slot.link, "*")) if slot.link is not None else "*" for slot in slots]
        for index, slot in enumerate(slots):
            slot.type = common_type([*linked[:index], *linked[index + 1 :], allowed[slot.name]]) or slot.type
        settled = common_type(linked)
        for output, match in zip(node.outputs, node.output_matches, strict=False):
            if match == key and settled:
                output.type = settled


def common_type(types: Sequence[str]) -> str | None:
    """The types that all have in common, "*" where none says anything, None where they contradict."""
    lists = [kind.split(",") for kind in types if kind != "*"]
    if not lists:
        return "*"
    common = [kind for kind in dict.fromkeys(lists[0]) if all(kind in other for other in lists)]
    return ",".join(common) or None
