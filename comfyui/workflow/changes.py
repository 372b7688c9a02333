"""What a prediction changes in a workflow before it runs: seeds, and where its files go. Pure."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Mapping
from typing import Any

from comfyui.workflow.parse import Node, Workflow

SEED_INPUTS = ("seed", "noise_seed", "rand_seed")
"""The names that fofr/any-comfyui-workflow randomises too."""
MAX_SEED = 2**32 - 1
"""Every seed input takes this; some custom nodes take no more."""


@dataclasses.dataclass(frozen=True)
class NewSeed:
    """A seed that was put into a workflow; printing it lets the picture be made again."""

    node_id: str
    title: str
    input_name: str
    value: int


def randomise_seeds(workflow: Workflow, source: random.Random) -> tuple[Workflow, list[NewSeed]]:
    """A copy of the workflow with a new number in every seed input that holds one; links stay as they are."""
    seeds: list[NewSeed] = []

    def changed(node: Node) -> Mapping[str, Any]:
        names = [name for name in SEED_INPUTS if type(node.inputs.get(name)) is int]
        values = {name: source.randint(0, MAX_SEED) for name in names}
        seeds.extend(NewSeed(node.id, node.title, name, value) for name, value in values.items())
        return values

    return workflow.changed(changed), seeds


RUN_ANEW = "run_anew"
"""An input that no node class has: ComfyUI ignores it, but takes the node for another than the one in its cache."""


def place_outputs(workflow: Workflow, folder: str, run_anew: Collection[str] = ()) -> Workflow:
    """A copy whose saving nodes write below `folder` of ComfyUI's output folder, each into a folder of its own.

    So a run's files are its own, and two nodes with one prefix do not share a counter, which would number their files
    in the order in which they happen to run. And a saving node of an identical earlier run saves again: ComfyUI would
    else answer from its cache with the name of a file that went away with that run, while the costly nodes still come
    from there. The nodes of `run_anew`, by id, run again whatever the cache has of them.
    """

    def changed(node: Node) -> Mapping[str, Any]:
        prefix = node.inputs.get("filename_prefix")
        place = f"{folder}/{workflow.position(node.id)}"
        placed = {"filename_prefix": f"{place}/{prefix}"} if isinstance(prefix, str) else {}
        return placed | ({RUN_ANEW: place} if node.id in run_anew else {})

    return workflow.changed(changed)
