"""PrimitiveNode: a value of its own that it writes into the widgets it is linked to.

Source of the rules: the frontend's widgetInputs.ts (PrimitiveNode), widgetValuePropagation.ts, nodeDefUtil.ts
(mergeInputSpec) and mathUtil.ts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from comfyui.workflow.convert.javascript import is_truthy, to_number
from comfyui.workflow.convert.model import Node, Slot, Widget
from comfyui.workflow.convert.nodes import PRIMITIVE
from comfyui.workflow.convert.specs import InputSpec
from comfyui.workflow.convert.widgets import has_widget, make_widgets

NOT_COMPARED = {
    "default",
    "forceInput",
    "defaultInput",
    "control_after_generate",
    "multiline",
    "tooltip",
    "dynamicPrompts",
}
REPLACE = "Run widget replace on values"
Replace = Callable[[str], str]


def prepare_primitive(node: Node) -> None:
    """Once everything is loaded: a widget like that of the first input it is linked to, with the stored value."""
    if node.type != PRIMITIVE or node.own_widgets:
        return
    targets = linked_inputs(node)
    if not targets or not node.outputs[0].links:
        return
    first, slot = targets[0]
    if slot is None:
        return
    spec = slot.spec or (InputSpec(slot.name, str(slot.type), {}) if slot.widget is None else None)
    if spec is None or not has_widget(spec):
        return
    node.outputs[0].type = spec.type
    theirs = first.widget(slot.widget or slot.name)
    widget = _widget(node, spec)
    if theirs is not None:
        widget.value = theirs.value
    if node.stored_values:
        widget.set(node.stored_values[0])
    node.own_widgets = [widget]
    _fit(node, spec)


def apply_primitive(node: Node, replace_text: Replace) -> None:
    """Before the prompt is made: write the value into every widget it is linked to, also when the node is muted."""
    if node.type != PRIMITIVE or not node.own_widgets:
        return
    value = node.own_widgets[0].value
    if is_truthy(value) and is_truthy(node.properties.get(REPLACE, False)) and isinstance(value, str):
        value = replace_text(value)
    for target, slot in linked_inputs(node):
        widget = target.widget(slot.widget) if slot is not None and slot.widget is not None else None
        if widget is not None:
            widget.push(value)


def linked_inputs(node: Node) -> list[tuple[Node, Slot | None]]:
    """The nodes that the first output is linked to, each with the input, if it is there."""
    found: list[tuple[Node, Slot | None]] = []
    for link_id in node.outputs[0].links if node.outputs else []:
        link = node.graph.link(link_id)
        target = node.graph.nodes.get(link.target_id) if link is not None else None
        if link is not None and target is not None:
            inside = 0 <= link.target_slot < len(target.inputs)
            found.append((target, target.inputs[link.target_slot] if inside else None))
    return found


def _widget(node: Node, spec: InputSpec) -> Widget:
    made = make_widgets(node, spec.named("value"))
    return made[0] if made else Widget("value", "combo")


def _fit(node: Node, spec: InputSpec) -> None:
    """Numbers keep within the limits that all linked inputs have in common, and snap to their step."""
    if spec.type not in {"INT", "FLOAT"}:
        return
    for _target, slot in linked_inputs(node):
        other = slot.spec if slot is not None else None
        merged = _merge(spec, other) if other is not None else None
        if merged is None:
            continue
        spec = merged
        widget = _widget(node, spec)
        widget.value = node.own_widgets[0].value
        least, most = widget.limits
        if to_number(widget.value) < least:
            widget.value = least
        if to_number(widget.value) > most:
            widget.value = most
        if widget.snap is not None:
            widget.value = widget.snap(widget.value)
        node.own_widgets = [widget]


def _merge(one: InputSpec, other: InputSpec) -> InputSpec | None:
    """What satisfies both, None where nothing does."""
    if one.type != other.type:
        return None
    low_1, high_1 = _range(one.options)
    low_2, high_2 = _range(other.options)
    if low_1 > high_2 or high_1 < low_2:
        return None
    step_1, step_2 = (to_number(spec.options.get("step") or 1) for spec in (one, other))
    both = {"min": max(low_1, low_2), "max": min(high_1, high_2), "step": _common_multiple(step_1, step_2)}
    options_1, options_2 = {**one.options, **both}, {**other.options, **both}
    keys = (options_1.keys() | options_2.keys()) - NOT_COMPARED
    if any(options_1.get(key) != options_2.get(key) for key in keys):
        return None
    return InputSpec(one.name, one.type, {**options_1, **options_2})


def _range(options: Mapping[str, Any]) -> tuple[float, float]:
    low, high = options.get("min"), options.get("max")
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _common_multiple(one: float, other: float) -> float:
    """Also for fractions, within the tolerance that the frontend has."""
    x, y = abs(one), abs(other)
    if x == 0 or y == 0:
        return 0
    for _ in range(100):
        if y <= 1e-10:
            break
        x, y = y, math.fmod(x, y) if isinstance(x, float) or isinstance(y, float) else x % y
    product = abs(one * other)
    return product // x if isinstance(product, int) and isinstance(x, int) else product / x
