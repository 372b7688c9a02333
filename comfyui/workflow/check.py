"""All that can be known to be wrong with a workflow before ComfyUI sees it, each with its node and input. Pure.

ComfyUI stops at the first unknown class, names a dangling link by a bare number, and leaves branches it cannot run out
in silence. It remains the judge of values: a node may accept what its list does not have (VALIDATE_INPUTS, which
/object_info does not show). So a value alone is not refused here before ComfyUI does (`is_certain`), unless it is a
model of ComfyUI's own loaders, but it is reported with the rest once the workflow is refused anyway, and by
`scripts/workflow check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from comfyui.errors import NodeProblem
from comfyui.workflow.node_classes import InputSpec, NodeClasses
from comfyui.workflow.parse import Node, Workflow
from comfyui.workflow.wording import (
    TRAINING_INPUT_OF,
    bad_link,
    no_output,
    not_in_list,
    out_of_range,
    problem,
    type_name,
    unknown_class,
)

CERTAIN = frozenset({"missing_node_type", "prompt_no_outputs", "bad_linked_input", "dependency_cycle"})
"""Kinds of problems that no node class can make right."""
_NUMBERS = {"INT": int, "FLOAT": float}


def is_certain(found: NodeProblem, classes: NodeClasses) -> bool:
    """Whether ComfyUI is sure to refuse, or to drop, this node; if not, only ComfyUI can tell."""
    if found.kind == "value_not_in_list":
        # Said before gigabytes are fetched, and before a wait for another prediction's end.
        return found.input_name in TRAINING_INPUT_OF and classes.is_comfyuis_own(found.class_type)
    return found.kind in CERTAIN


def check(workflow: Workflow, classes: NodeClasses) -> list[NodeProblem]:
    """Every problem, in the order of the workflow's nodes. Nodes that no output depends on only need a known class."""
    outputs = [node.id for node in workflow.nodes.values() if classes.is_output(node.class_type)]
    unknown = [node for node in workflow.nodes.values() if node.class_type not in classes]
    problems = [unknown_class(workflow, node.id, node.class_type, classes) for node in unknown]
    if not outputs and not unknown:
        problems.append(no_output())
    # A node of an unknown class may be the output that was meant.
    needed = _needed(workflow, [*outputs, *(node.id for node in unknown)])
    for node_id in needed:
        node = workflow.nodes[node_id]
        problems.extend(_links(node, workflow, classes))
        if node.class_type in classes:
            problems.extend(_inputs(node, workflow, classes))
    problems.extend(_cycles(workflow, needed))
    return sorted(problems, key=lambda found: workflow.position(found.node_id))


def _needed(workflow: Workflow, roots: list[str]) -> list[str]:
    """The roots and every node they depend on, each once."""
    seen: dict[str, None] = {}
    waiting = list(roots)
    while waiting:
        node_id = waiting.pop()
        if node_id not in seen:
            seen[node_id] = None
            waiting.extend(_sources(workflow.nodes[node_id], workflow))
    return list(seen)


def _sources(node: Node, workflow: Workflow) -> Iterator[str]:
    for value in node.inputs.values():
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in workflow.nodes:
            yield str(value[0])


def _links(node: Node, workflow: Workflow, classes: NodeClasses) -> Iterator[NodeProblem]:
    """Links that lead nowhere, whether the class has such an input or not."""
    known = {spec.name for spec in classes.inputs(node.class_type)}
    for name, value in node.inputs.items():
        # A list that is no link may be the value of an input that only the node itself knows.
        looks_like_link = isinstance(value, list) and (name in known or (len(value) == 2 and isinstance(value[1], int)))
        if looks_like_link and (what := bad_link(name, value, workflow, classes)):
            yield problem(workflow, node.id, name, "bad_linked_input", what)


def _inputs(node: Node, workflow: Workflow, classes: NodeClasses) -> Iterator[NodeProblem]:
    """Inputs that are missing, or hold what their class does not take."""
    for spec in classes.inputs(node.class_type):
        if spec.dynamic:
            continue
        if spec.name not in node.inputs:
            if spec.required:
                what = f"the input {spec.name} is missing; link it or give it a value."
                yield problem(workflow, node.id, spec.name, "required_input_missing", what)
            continue
        value = node.inputs[spec.name]
        found = _link_type(spec, value, workflow, classes) if isinstance(value, list) else _value(spec, value)
        if found:
            yield problem(workflow, node.id, spec.name, *found)


def _link_type(spec: InputSpec, link: list[object], workflow: Workflow, classes: NodeClasses) -> tuple[str, str] | None:
    if bad_link(spec.name, link, workflow, classes):
        return None
    outputs = classes.outputs(workflow.nodes[str(link[0])].class_type)
    if outputs is None or not isinstance(link[1], int):
        return None
    given = outputs[link[1]]
    if spec.accepts(given):
        return None
    return "return_type_mismatch", f"{spec.name} takes {type_name(spec)}, but node {link[0]} gives {given}."


def _value(spec: InputSpec, value: object) -> tuple[str, str] | None:
    """What is wrong with a plain value, as execution.py converts and compares it."""
    if isinstance(value, Mapping) and "__value__" in value:
        value = value["__value__"]
    if convert := _NUMBERS.get(spec.type):
        try:
            number = convert(value)
        except (TypeError, ValueError, OverflowError):
            return "invalid_input_type", f"{spec.name} is {value!r}, which is not {spec.type}."
        low, high = spec.options.get("min"), spec.options.get("max")
        if isinstance(low, int | float) and number < low:
            return "value_smaller_than_min", out_of_range(spec.name, value, spec)
        if isinstance(high, int | float) and number > high:
            return "value_bigger_than_max", out_of_range(spec.name, value, spec)
    elif spec.choices is not None and not spec.takes_file:
        values = value if isinstance(value, list) else [value]
        if any(str(item) not in spec.choices for item in values):
            return "value_not_in_list", not_in_list(spec.name, value, spec.choices)
    return None


def _cycles(workflow: Workflow, needed: list[str]) -> Iterator[NodeProblem]:
    """One problem for each loop of links; the first node that closes one names the way round."""
    state: dict[str, str] = {}
    for root in needed:
        path: list[str] = []
        stack = [(root, iter(_sources(workflow.nodes[root], workflow)))] if root not in state else []
        while stack:
            node_id, sources = stack[-1]
            if state.get(node_id) is None:
                state[node_id] = "open"
                path.append(node_id)
            follow = next((source for source in sources if state.get(source) != "done"), None)
            if follow is None:
                state[node_id] = "done"
                path.pop()
                stack.pop()
            elif state.get(follow) == "open":
                way = " → ".join([*path[path.index(follow) :], follow])
                what = f"its inputs depend on its own outputs, by {way}; take one of these links out."
                yield problem(workflow, follow, None, "dependency_cycle", what)
                state[follow] = "open"
            else:
                stack.append((follow, iter(_sources(workflow.nodes[follow], workflow))))
