"""From a loaded graph to the API format: widget values, then links, for every node that runs.

Source of the rules: the frontend's executionUtil.ts (graphToPrompt), dynamicPrompts.ts, saveImageExtraOutput.ts,
load3d.ts, webcamCapture.ts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from comfyui.errors import NodeProblem, WorkflowError
from comfyui.workflow.convert.javascript import UNSET, in_key_order, json_value
from comfyui.workflow.convert.model import Graph, Mode, Node, Widget, error_of, walk
from comfyui.workflow.convert.primitives import apply_primitive
from comfyui.workflow.convert.resolve import Given, Origin, Resolver, Step, execution_order, unfold
from comfyui.workflow.convert.text import Choose, expand_choices, replace_placeholders
from comfyui.workflow.node_packs import pack_of


@dataclass(frozen=True)
class _Surroundings:
    """What text in a widget may refer to."""

    nodes: Sequence[Node]
    now: datetime
    choose: Choose

    def replaced(self, text: str) -> str:
        return replace_placeholders(text, self.nodes, self.now)


def make_prompt(graph: Graph, *, now: datetime, choose: Choose) -> dict[str, Any]:
    """The API format of a graph. Raises WorkflowError naming every node that no running ComfyUI could take."""
    surroundings = _Surroundings(list(dict.fromkeys(walk(graph))), now, choose)
    order = execution_order(graph)
    for node in order:
        for inner in [node] if node.subgraph is None else walk(node.subgraph):
            apply_primitive(inner, surroundings.replaced)
    steps = unfold(graph, order)
    running = [step for step in steps.values() if _runs(step.node)]
    _refuse_unknown(running)
    prompt = {step.id: _entry(step, steps, surroundings) for step in running}
    return {node_id: prompt[node_id] for node_id in in_key_order(prompt)}


def _runs(node: Node) -> bool:
    return not node.virtual and node.mode not in {Mode.MUTED, Mode.BYPASSED}


def _refuse_unknown(running: Sequence[Step]) -> None:
    unknown = [step for step in running if step.node.comfy_class is None]
    if not unknown:
        return
    named = [f"{step.id} {step.node.title!r} ({step.node.type})" for step in unknown]
    problems = [
        NodeProblem(step.id, step.node.title, step.node.type, None, "missing_node_type", "is not installed")
        for step in unknown
    ]
    packs = dict.fromkeys(filter(None, (pack_of(step.node.type, step.node.properties) for step in unknown)))
    raise WorkflowError(
        f"This ComfyUI has no class for node{'s' if len(named) > 1 else ''} {', '.join(named)}, so the workflow cannot "
        "be converted; mute, bypass or replace what needs other custom nodes"
        f"{', or add ' + ', '.join(packs) + ' to ComfyUI' if packs else ''}.",
        problems=problems,
    )


def _entry(step: Step, steps: Mapping[str, Step], surroundings: _Surroundings) -> dict[str, Any]:
    node = step.node
    inputs: dict[str, Any] = {}
    for widget in node.widgets:
        if widget.in_prompt and widget.name:
            inputs[widget.name] = _wrapped(_sent(step, widget, surroundings), widget.kind)
    for index, slot in enumerate(node.inputs):
        source = Resolver(steps).input(step, index)
        if isinstance(source, Origin):
            inputs[slot.name] = [source.id, source.slot]
        elif isinstance(source, Given):
            inputs[slot.name] = _wrapped(source.value, "promoted")
    return {
        "inputs": {name: value for name, value in inputs.items() if value is not UNSET},
        "class_type": node.comfy_class,
        "_meta": {"title": node.title},
    }


def _sent(step: Step, widget: Widget, surroundings: _Surroundings) -> Any:
    """What a widget sends, where that is not simply its value."""
    if widget.kind == "scene":
        return _scene(step.node)
    if widget.kind == "webcam":
        raise error_of(
            step.node, "takes its picture from a camera in the browser; use LoadImage instead.", path=step.id
        )
    if widget.replaces:
        if not isinstance(widget.value, str):
            # The frontend stops here too, though without saying where.
            raise error_of(
                step.node, f"has a {widget.name} that is not text; write a name for its files.", path=step.id
            )
        return surroundings.replaced(widget.value)
    if isinstance(widget.value, str) and widget.expands:
        return expand_choices(widget.value, surroundings.choose)
    return widget.value


def _scene(node: Node) -> dict[str, Any]:
    """What a 3D viewer sends, without the pictures that only a browser can take of it."""
    camera = node.properties.get("Camera Config")
    state = camera.get("state") if isinstance(camera, Mapping) else None
    parts: dict[str, Any] = {"camera_info": copy.deepcopy(state), "model_3d_info": []}
    if node.comfy_class == "Load3DAdvanced":
        return parts
    return {"image": "", "mask": "", "normal": "", "recording": "", **parts}


def _wrapped(value: Any, kind: str) -> Any:
    """A list would be read as a link, so it goes into an object."""
    if isinstance(value, list):
        extra = {"__type__": "CURVE"} if kind == "curve" else {}
        return {**extra, "__value__": copy.deepcopy(value)}
    return copy.deepcopy(value) if isinstance(value, dict) else json_value(value)
