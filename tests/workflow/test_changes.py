"""Seeds and output folders put into a workflow."""

from __future__ import annotations

import json
import random
from typing import Any

from comfyui.workflow.changes import MAX_SEED, NewSeed, place_outputs, randomise_seeds
from comfyui.workflow.parse import Workflow, parse_workflow
from tests.workflow.answers import WORKFLOW


def workflow_of(nodes: dict[str, Any]) -> Workflow:
    return parse_workflow(json.dumps(nodes))


def node(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "A", "inputs": inputs, "_meta": {"title": "The A"}}


def test_every_number_in_a_seed_input_is_replaced_and_reported() -> None:
    before = workflow_of({"1": node(seed=1), "2": node(noise_seed=2, steps=3), "3": node(rand_seed=4)})
    after, seeds = randomise_seeds(before, random.Random(7))
    expected = random.Random(7)
    values = [expected.randint(0, MAX_SEED) for _ in range(3)]
    assert seeds == [
        NewSeed("1", "The A", "seed", values[0]),
        NewSeed("2", "The A", "noise_seed", values[1]),
        NewSeed("3", "The A", "rand_seed", values[2]),
    ]
    assert after.nodes["1"].inputs == {"seed": values[0]}
    assert after.nodes["2"].inputs == {"noise_seed": values[1], "steps": 3}
    assert before.nodes["1"].inputs == {"seed": 1}


def test_a_seed_that_is_linked_or_no_whole_number_stays() -> None:
    inputs = {"1": node(seed=["2", 0]), "2": node(seed="fixed", noise_seed=True, rand_seed=1.5), "3": node(value=5)}
    after, seeds = randomise_seeds(workflow_of(inputs), random.Random(7))
    assert seeds == []
    assert after == workflow_of(inputs)


def test_new_seeds_differ_and_fit_into_32_bits() -> None:
    many = workflow_of({str(number): node(seed=0) for number in range(500)})
    values = [seed.value for seed in randomise_seeds(many, random.Random())[1]]
    assert len(set(values)) > 490
    assert all(0 <= value < 2**32 for value in values)


def test_saving_nodes_write_into_the_runs_folder() -> None:
    workflow = workflow_of({**WORKFLOW, "20": node(filename_prefix="sub/my.png"), "21": node(filename_prefix=["9", 0])})
    placed = place_outputs(workflow, "run-1/2")
    at = workflow.position
    assert placed.nodes["9"].inputs == {"images": ["8", 0], "filename_prefix": f"run-1/2/{at('9')}/x"}
    assert placed.nodes["20"].inputs == {"filename_prefix": f"run-1/2/{at('20')}/sub/my.png"}
    assert at("9") != at("20")
    assert placed.nodes["21"] == workflow.nodes["21"]
    assert placed.nodes["3"] == workflow.nodes["3"]
    assert workflow.nodes["9"].inputs["filename_prefix"] == "x"


def test_a_node_that_is_to_run_anew_is_another_one_for_the_cache() -> None:
    workflow = workflow_of({"1": node(images=["2", 0]), "2": node(steps=3), "3": node(filename_prefix="x")})
    first, second = (place_outputs(workflow, folder, {"1", "3"}) for folder in ("run-1/1", "run-1/2"))
    assert first.nodes["1"].inputs["images"] == ["2", 0]
    assert first.nodes["1"].inputs != second.nodes["1"].inputs != workflow.nodes["1"].inputs
    assert first.nodes["2"] == workflow.nodes["2"]
    assert first.nodes["3"].inputs["filename_prefix"] == "run-1/1/2/x"


def test_a_prompt_that_looks_like_a_url_or_a_file_stays_as_it_was_written() -> None:
    """Both are bugs of the nearest project: it downloads the first and misses the second as an input file."""
    nodes = {"1": node(text="https://example.com/a.png in the style of b.png"), "2": node(filename_prefix="out.png")}
    after = place_outputs(randomise_seeds(workflow_of(nodes), random.Random(1))[0], "run")
    assert after.nodes["1"].inputs == nodes["1"]["inputs"]
    assert after.nodes["2"].inputs == {"filename_prefix": "run/1/out.png"}
