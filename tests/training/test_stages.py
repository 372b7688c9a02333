"""The stages of a training: all steps once, with the noise that one stage would have."""

from __future__ import annotations

import pytest

from comfyui.training.parameters import TrainingParameters
from comfyui.training.stages import sample_names, stages


@pytest.mark.parametrize(
    ("steps", "every", "spans"),
    [
        (10, 0, [(0, 10)]),
        (10, 10, [(0, 10)]),
        (10, 99, [(0, 10)]),
        (10, 5, [(0, 5), (5, 10)]),
        (10, 4, [(0, 4), (4, 8), (8, 10)]),
    ],
)
def test_all_steps_are_made_once(steps: int, every: int, spans: list[tuple[int, int]]) -> None:
    found = stages(TrainingParameters(steps=steps, sample_every=every))
    assert [(stage.begin, stage.end) for stage in found] == spans
    assert [stage.parameters.steps for stage in found] == [end - begin for begin, end in spans]


def test_the_noise_goes_on() -> None:
    # nodes_train.py, TrainSampler.sample: pass i has the seed plus 1000 * i.
    whole = TrainingParameters(steps=6, sample_every=2, grad_accumulation_steps=3, seed=7)
    seeds = [
        stage.parameters.seed + 1000 * number for stage in stages(whole) for number in range(stage.parameters.passes)
    ]
    assert seeds == [7 + 1000 * number for number in range(whole.passes)]


def test_there_is_a_sample_between_stages_and_names_sort_as_steps_do() -> None:
    assert sample_names(TrainingParameters(steps=10)) == []
    names = sample_names(TrainingParameters(steps=1500, sample_every=600))
    assert names == ["sample_step_000600.png", "sample_step_001200.png"]
