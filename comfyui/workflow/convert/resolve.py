"""Where the value of an input comes from: through reroutes, bypassed nodes and in and out of subgraphs.

Source of the rules: the frontend's ExecutableNodeDTO.ts (resolveInput, resolveOutput, _getBypassSlotIndex) and
LiteGraphGlobal.ts (isValidConnection).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfyui.errors import WorkflowError
from comfyui.workflow.convert.model import (
    SUBGRAPH_INPUT_ID,
    SUBGRAPH_OUTPUT_ID,
    Graph,
    Mode,
    Node,
    Subgraph,
    error_of,
)


@dataclass(frozen=True, eq=False)
class Step:
    """A node as it runs: the same inner node runs once for each subgraph node that stands for it.

    `id` is its place in the prompt: the ids of the subgraph nodes around it and its own, with colons between.
    """

    node: Node
    id: str
    path: str
    host: Node | None


@dataclass(frozen=True)
class Origin:
    """The output that an input is fed from."""

    id: str
    slot: int


@dataclass(frozen=True)
class Given:
    """The value of a promoted widget, in place of an output."""

    value: Any


Source = Origin | Given | None
Steps = Mapping[str, Step]


def unfold(graph: Graph, order: list[Node]) -> dict[str, Step]:
    """Every node that may run, by its id in the prompt. Inside a muted or bypassed node of the workflow none does."""
    steps: dict[str, Step] = {}
    for node in order:
        steps[node.id] = Step(node, node.id, "", None)
        if node.subgraph is not None and node.mode not in {Mode.MUTED, Mode.BYPASSED}:
            steps |= {step.id: step for step in _inside(node, node.id, node.subgraph)}
    return steps


def _inside(host: Node, path: str, definition: Subgraph) -> Iterator[Step]:
    """The nodes inside a subgraph node; that none contains itself was seen when the graph was loaded (walk)."""
    for node in definition.nodes.values():
        step = Step(node, f"{path}:{node.id}", path, host)
        yield step
        if node.subgraph is not None:
            yield from _inside(node, step.id, node.subgraph)


class Resolver:
    """Follows the links of one input; made anew for each, so that a circle is noticed."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._visited: set[tuple[str, str, int]] = set()

    def input(self, step: Step, slot: int, kind: Any = None) -> Source:
        """What feeds an input: an output that runs, a promoted value, or nothing."""
        self._visit(step, "input", slot)
        if not 0 <= slot < len(step.node.inputs):
            raise error_of(step.node, f"has no input number {slot}, to which a link goes.", path=step.id)
        target = step.node.inputs[slot]
        if target.link is None:
            return None
        link = step.node.graph.link(target.link)
        if link is None:
            raise error_of(
                step.node,
                f"has an input {target.name!r} with the link {target.link}, which is not in the file; connect it "
                "again in ComfyUI.",
                path=step.id,
            )
        if step.host is not None and link.origin_id == SUBGRAPH_INPUT_ID:
            return self._outside(step, step.host, link.origin_slot)
        origin = self._step(step.path, link.origin_id)
        if origin is None:
            raise error_of(
                step.node,
                f"has an input {target.name!r} that comes from node {link.origin_id}, which is not in the file; "
                "connect it again in ComfyUI.",
                path=step.id,
            )
        return self.output(origin, link.origin_slot, target.type if kind is None else kind)

    def output(self, step: Step, slot: int, kind: Any) -> Source:
        """What an output stands for: itself, or what lies behind a node that does not run."""
        self._visit(step, "output", slot)
        node = step.node
        if slot < 0:
            raise error_of(node, f"has no output number {slot}, from which a link comes.", path=step.id)
        if node.mode == Mode.MUTED:
            return None
        if node.mode == Mode.BYPASSED:
            behind = self._behind_bypass(step, slot, kind)
            return None if behind is None else self.input(step, behind)
        if node.subgraph is not None:
            return self._inner_output(step, node.subgraph, slot, kind)
        if node.virtual:
            has_link = slot < len(node.inputs) and node.graph.link(node.inputs[slot].link) is not None
            return self.input(step, slot, kind) if has_link else None
        return Origin(step.id, slot)

    def _visit(self, step: Step, side: str, slot: int) -> None:
        if (step.id, side, slot) in self._visited:
            raise error_of(step.node, "is linked in a circle that no running node interrupts.", path=step.id)
        self._visited.add((step.id, side, slot))

    def _step(self, path: str, node_id: str) -> Step | None:
        return self._steps.get(f"{path}:{node_id}" if path else node_id)

    def _outside(self, step: Step, host: Node, slot: int) -> Source:
        """Up and out of the subgraph: the host's link, or else the value of its promoted widget."""
        if not 0 <= slot < len(host.inputs):
            raise error_of(step.node, f"is linked to input number {slot} of its subgraph, which is not there.")
        outer = host.inputs[slot]
        if outer.link is None:
            return None if outer.promoted is None else Given(outer.promoted.value)
        return self.input(self._steps[step.path], slot)

    def _inner_output(self, step: Step, definition: Subgraph, slot: int, kind: Any) -> Source:
        if not 0 <= slot < len(definition.outputs):
            raise error_of(step.node, f"has no output number {slot}, from which a link comes.", path=step.id)
        link = next(
            (link for link in map(definition.link, definition.outputs[slot].link_ids) if link is not None), None
        )
        if link is None:
            return None
        if link.origin_id == SUBGRAPH_INPUT_ID:
            raise error_of(
                step.node,
                f"leads its input {link.origin_slot} straight to its output {slot}, which ComfyUI does not run; "
                "connect around it.",
                path=step.id,
            )
        inner = self._step(step.id, link.origin_id)
        if inner is None:
            raise error_of(step.node, f"has an output that comes from no node of it ({link.origin_id}).", path=step.id)
        return self.output(inner, link.origin_slot, kind)

    @staticmethod
    def _behind_bypass(step: Step, slot: int, kind: Any) -> int | None:
        """The input that takes the place of an output: same place if it fits, else the first of exactly that type."""
        inputs, outputs = step.node.inputs, step.node.outputs
        if not 0 <= slot < len(outputs):
            raise error_of(step.node, f"has no output number {slot}, from which a link comes.", path=step.id)
        if kind in {"*", ""} if isinstance(kind, str) else False:
            return slot if len(inputs) > slot else (0 if inputs else None)
        own = outputs[slot].type
        fitting = [index for index, one in enumerate(inputs) if fits(one.type, own) and fits(one.type, kind)]
        exact = [index for index, one in enumerate(inputs) if one.type == kind]
        chosen = [slot] if slot in fitting else [*exact, *fitting]
        return chosen[0] if chosen else None


def fits(one: Any, other: Any) -> bool:
    """Whether two slot types may be linked: "*" fits all, and lists like "IMAGE,MASK" need one in common."""
    if one in (0, "", "*", None) or other in (0, "", "*", None) or one == other:
        return True
    parts = [set(str(kind).lower().split(",")) for kind in (one, other)]
    return bool(parts[0] & parts[1]) or any(part & {"", "*"} for part in parts)


def execution_order(graph: Graph) -> list[Node]:
    """The nodes in the order in which litegraph lists them: each behind all that it takes from (LGraph.ts)."""
    waiting = {node.id: sum(slot.link is not None for slot in node.inputs) for node in graph.nodes.values()}
    ready = [node for node in graph.nodes.values() if waiting[node.id] == 0]
    ordered: dict[str, Node] = {}
    seen: set[int] = set()
    for node in ready:  # grows while it is read
        ordered[node.id] = node
        for link in (graph.link(link_id) for output in node.outputs for link_id in output.links):
            if link is None or link.id in seen:
                continue
            seen.add(link.id)
            if link.target_id in waiting and link.target_id not in {SUBGRAPH_OUTPUT_ID}:
                waiting[link.target_id] -= 1
                if waiting[link.target_id] == 0:
                    ready.append(graph.nodes[link.target_id])
    return [*ordered.values(), *(node for node in graph.nodes.values() if node.id not in ordered)]


def too_deep() -> WorkflowError:
    """For what leads on for hundreds of steps."""
    return WorkflowError(
        "workflow_json goes hundreds of levels deep, in its values, subgraphs or chains of reroutes; make it flatter."
    )
