"""Against prompts that ComfyUI's own frontend made in a browser (shared/data/ui_to_api), where they are at hand.

A clone without that folder tests every rule by the small workflows of the other test_convert files.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import Any

import pytest

from comfyui.settings import PROJECT_ROOT
from comfyui.workflow.convert import convert
from comfyui.workflow.parse import parse_workflow

DATA = PROJECT_ROOT.parent / "shared" / "data" / "ui_to_api"
PAIRS: list[dict[str, Any]] = json.loads((DATA / "index.json").read_text())["pairs"] if DATA.is_dir() else []
needs_pairs = pytest.mark.skipif(not PAIRS, reason=f"no {DATA}")


@cache
def object_info() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(gzip.decompress((DATA / "object_info.json.gz").read_bytes()))
    return value


def read(name: str, kind: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DATA / "pairs" / f"{name}.{kind}.json").read_text("utf-8"))
    return value


def as_doubles(value: Any) -> Any:
    """Numbers as a browser has them, which cannot tell 1 from 1.0 and rounds above 2**53."""
    if isinstance(value, dict):
        return {key: as_doubles(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def choices() -> list[Any]:
    """Every pair; those with {a|b} in them a second time, with the last choices."""
    again = [pytest.param(pair, -1, id=f"{pair['name']}-last") for pair in PAIRS if pair["random_inputs"]]
    return [*(pytest.param(pair, 0, id=pair["name"]) for pair in PAIRS), *again]


@needs_pairs
@pytest.mark.parametrize(("pair", "choice"), choices())
def test_the_prompt_is_the_frontends(pair: dict[str, Any], choice: int) -> None:
    made = convert(read(pair["name"], "ui"), object_info(), choose=lambda options: options[choice])
    expected = read(pair["name"], "api")
    for chosen in pair["random_inputs"]:
        expected[chosen["node"]]["inputs"][chosen["input"]] = chosen["random0" if choice == 0 else "random1"]
    for node_id, name in pair["volatile_inputs"]:
        # A time stamp or an upload: different in every run, but there.
        made[node_id]["inputs"][name] = expected[node_id]["inputs"][name]
    assert as_doubles(made) == as_doubles(expected)


@needs_pairs
def test_every_prompt_is_a_workflow_for_our_own_reader() -> None:
    for pair in PAIRS:
        prompt = convert(read(pair["name"], "ui"), object_info())
        if prompt:
            assert parse_workflow(json.dumps(prompt)).prompt() == prompt
