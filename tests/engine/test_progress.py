"""The lines a client of Replicate's API reads progress from."""

from __future__ import annotations

import re

from comfyui.engine.events import Event, Executing, ExecutionCached, ExecutionSuccess, Progress, Unknown
from comfyui.engine.progress import RunProgress

TITLES = {"1": "Checkpoint", "2": "Prompt", "3": "Sampler", "4": "Save"}
CLIENTS_READ = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)/(\d+)")
"""The shape that Replicate's JavaScript client looks for in the logs (lib/util.js, parseProgressFromLogs)."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(*events: Event, clock: Clock | None = None) -> list[str]:
    progress = RunProgress(TITLES, clock or Clock())
    return [line for event in events if (line := progress.line(event))]


def test_a_run_from_its_first_node_to_its_end() -> None:
    assert lines(
        Executing("p", "1"),
        Executing("p", "2"),
        Executing("p", "3"),
        Progress("p", "3", 4, 4),
        Executing("p", "4"),
        ExecutionSuccess("p"),
        Executing("p", None),
    ) == [
        "  0%|          | 0/4 Checkpoint",
        " 25%|██▌       | 1/4 Prompt",
        " 50%|█████     | 2/4 Sampler",
        " 75%|███████▌  | 2/4 Sampler, step 4 of 4",
        " 75%|███████▌  | 3/4 Save",
        "100%|██████████| 4/4 done",
    ]


def test_cached_nodes_are_done() -> None:
    assert lines(ExecutionCached("p", ("1", "2", "99")), Executing("p", "3")) == [" 50%|█████     | 2/4 Sampler"]


def test_steps_make_a_line_a_second_at_most_and_one_at_the_end() -> None:
    clock = Clock()
    progress = RunProgress(TITLES, clock)
    said = []
    for step in range(1, 101):
        clock.now += 0.1
        said.append(progress.line(Progress("p", "3", step, 100)))
    made = [line for line in said if line]
    assert len(made) == 11
    assert made[-1].endswith("step 100 of 100")


def test_every_line_is_what_clients_read_and_never_goes_back() -> None:
    events: list[Event] = [Executing("p", "3"), *(Progress("p", "3", step, 7) for step in range(8))]
    events += [Executing("p", "3.0.1"), Progress("p", "3.0.1", 1, 2), Executing("p", "4"), ExecutionSuccess("p")]
    clock = Clock()
    progress = RunProgress(TITLES, clock)
    percents = []
    for event in events:
        clock.now += 2
        line = progress.line(event)
        assert line is not None
        found = CLIENTS_READ.match(line)
        assert found, line
        percents.append(int(found[1]))
    assert percents == sorted(percents)
    assert percents[-1] == 100


def test_a_node_made_while_it_runs_has_the_title_of_its_maker() -> None:
    assert lines(Executing("p", "3.0.1")) == ["  0%|          | 0/4 Sampler"]


def test_other_events_say_nothing() -> None:
    assert lines(Unknown("p", "status"), Progress("p", "3", 1, 0), Executing("p", None)) == []
