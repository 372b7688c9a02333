"""Steps and losses out of ComfyUI's events and its bar, a line a second."""

from __future__ import annotations

import pytest

from comfyui.engine.events import Executing, Progress
from comfyui.engine.follow import LogLine
from comfyui.errors import TrainingInputError
from comfyui.training.parameters import TrainingParameters
from comfyui.training.progress import BROKEN_LINES, PlainReport, TrainingProgress

PROMPT = {
    "latent1": {"class_type": "VAEEncode"},
    "latent2": {"class_type": "VAEEncode"},
    "train": {"class_type": "TrainLoraNode"},
}


class Steps:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[int, int, float | None]] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def step(self, done: int, total: int, loss: float | None) -> None:
        self.steps.append((done, total, loss))


def bar(done: int, loss: str, more: str = "") -> LogLine:
    return LogLine(f"Training LoRA:  45%|████▌     | {done}/20 [00:01<00:01,  8.1it/s, loss={loss}{more}]")


def test_steps_and_losses_come_from_the_bar_and_steps_from_events_too() -> None:
    report = Steps()
    progress = TrainingProgress(PROMPT, TrainingParameters(steps=20), report)
    progress.observe(Progress(None, "train", 1, 20))
    progress.observe(bar(1, "19.5"))
    progress.observe(bar(9, "0.1234", ", bucket=1"))
    progress.observe(Progress(None, "train", 5, 20))
    progress.observe(Progress(None, "train", 10, 20))
    progress.observe(Progress(None, "other", 3, 4))
    assert report.steps == [(1, 20, None), (9, 20, 0.1234), (10, 20, 0.1234)]
    assert report.said == []


def test_a_training_that_broke_is_not_paid_for_to_its_end() -> None:
    progress = TrainingProgress(PROMPT, TrainingParameters(steps=20, learning_rate=0.5), Steps())
    for number in range(BROKEN_LINES - 1):
        progress.observe(bar(number, "nan"))
    progress.observe(bar(BROKEN_LINES - 1, "0.2"))
    for number in range(BROKEN_LINES - 1):
        progress.observe(bar(BROKEN_LINES + number, "inf"))
    with pytest.raises(TrainingInputError, match=r"from pass 11 of 20 on.* smaller learning_rate than 0\.5") as caught:
        progress.observe(bar(19, "nan"))
    assert caught.value.input_name == "learning_rate"


def test_a_later_stage_goes_on_counting() -> None:
    report = Steps()
    progress = TrainingProgress(PROMPT, TrainingParameters(steps=30), report, before=20)
    progress.observe(Executing(None, "train"))
    progress.observe(Progress(None, "train", 1, 10))
    progress.observe(bar(4, "0.5"))
    assert report.steps == [(21, 30, None), (24, 30, 0.5)]
    assert report.said == []


def test_other_lines_of_the_log_are_handed_on_and_other_bars_are_not() -> None:
    report = Steps()
    progress = TrainingProgress(PROMPT, TrainingParameters(steps=20), report)
    progress.observe(LogLine("[INFO] loaded completely"))
    progress.observe(LogLine("100%|██████████| 20/20 [00:01<00:00, 12.1it/s]"))
    assert report.said == ["[comfyui] [INFO] loaded completely"]


def test_encoding_is_counted_to_its_end() -> None:
    report = Steps()
    progress = TrainingProgress(PROMPT, TrainingParameters(steps=20), report)
    for node in ("latent1", "latent2", "train"):
        progress.observe(Executing(None, node))
    assert report.said == ["Encoding image 1 of 2", "Encoding image 2 of 2", "Training begins."]


def test_a_line_a_second_and_the_last_one() -> None:
    said: list[str] = []
    clock = iter((0.0, 0.5, 1.0, 1.2))
    report = PlainReport(said.append, lambda: next(clock))
    for done, loss in ((1, None), (9, 0.5), (18, 0.12345), (20, 0.1)):
        report.step(done, 20, loss)
    assert said == ["  5%|          | 1/20", " 90%|█████████ | 18/20 loss 0.1235", "100%|██████████| 20/20 loss 0.1"]
