"""What is said of single files of a dataset: remarks, files left out, and problems, in words. Pure.

File names come from outside: none of them gets into a log with letters that a terminal obeys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from comfyui.errors import TrainingInputError

INPUT_NAME = "training_images"
LISTED_NAMES = 8
LISTED_PROBLEMS = 20
"""How many a message lists; a dataset may hold thousands."""


@dataclass(frozen=True)
class Remark:
    """Something a person should know of one file: `source` is its name as they know it."""

    source: str
    text: str


@dataclass(frozen=True)
class Skipped:
    """A file that is no part of the dataset: `source` is its name as the person knows it, `reason` is why."""

    source: str
    reason: str


def shown(name: str) -> str:
    """A file name fit for a log: as it is, or with escapes where a terminal would not show it as it is."""
    return name if name.isprintable() else ascii(name)


def problem(source: str, text: str) -> TrainingInputError:
    """The error for one file; `text` goes on from its name."""
    return TrainingInputError(f"{shown(source)} {text}", input_name=INPUT_NAME)


def refuse(problems: Sequence[TrainingInputError]) -> TrainingInputError:
    """The error for a dataset with these problems: one is a sentence, more are a numbered list."""
    if len(problems) == 1:
        return TrainingInputError(f"{INPUT_NAME} cannot be used: {problems[0]}", input_name=INPUT_NAME)
    lines = [f"  {number}. {error}" for number, error in enumerate(problems[:LISTED_PROBLEMS], 1)]
    if len(problems) > LISTED_PROBLEMS:
        lines.append(f"  … and {len(problems) - LISTED_PROBLEMS} more")
    return TrainingInputError(
        "\n".join([f"{INPUT_NAME} cannot be used; {len(problems)} problems:", *lines]), input_name=INPUT_NAME
    )


def listed(names: Iterable[str]) -> str:
    """The first of these file names, and how many more there are."""
    all_names = [shown(name) for name in names]
    more = len(all_names) - LISTED_NAMES
    return ", ".join(all_names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def grouped(said: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each text with the names it is said of, from pairs of name and text, in the order of the first."""
    names: dict[str, list[str]] = {}
    for name, text in said:
        names.setdefault(text, []).append(name)
    return [f"{text}: {listed(group)}" for text, group in names.items()]
