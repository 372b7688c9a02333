"""A wrong input name given to run() or train(), sync or async, and the defaults that Cog would put in."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from cog import Input

from comfyui.cog_inputs import explain_unknown_inputs
from comfyui.errors import RequestError

WRONG_TRAINING: dict[str, Any] = {"hf_lora": "a"}
WRONG: dict[str, Any] = {"workflow": "{}", "zzzz": 1}


class Runner:
    @explain_unknown_inputs
    async def run(self, workflow_json: str = Input(default="none"), randomise_seeds: bool = True) -> Any:
        """What it was called with."""
        return workflow_json, randomise_seeds


@explain_unknown_inputs
def train(loras: str | None = Input(default=None), checkpoints: str = Input(default="")) -> Any:
    """What it was called with."""
    return loras, checkpoints


@explain_unknown_inputs
def setup(weights: str = "w", *, strict: bool) -> Any:
    """What it was called with."""
    return weights, strict


async def test_right_inputs_and_defaults_arrive() -> None:
    assert await Runner().run() == ("none", True)
    assert await Runner().run(workflow_json="{}", randomise_seeds=False) == ("{}", False)
    assert train() == (None, "")
    assert train("a", checkpoints="b") == ("a", "b")
    assert setup(strict=True) == ("w", True)


async def test_a_wrong_name_is_answered_with_the_nearest_and_all_right_ones() -> None:
    with pytest.raises(RequestError) as caught:
        await Runner().run(**WRONG)
    assert str(caught.value) == (
        "There is no input 'workflow'; did you mean 'workflow_json'? There is no input 'zzzz'. "
        "The inputs are: workflow_json, randomise_seeds."
    )
    with pytest.raises(RequestError, match="There is no input 'hf_lora'; did you mean 'loras'"):
        train(**WRONG_TRAINING)


def test_weights_is_no_input_of_a_caller() -> None:
    with pytest.raises(RequestError, match=r"There is no input 'weights'\. The inputs are: strict\."):
        setup(weights="x", strict=True)


def test_the_decorated_function_still_looks_like_the_one_that_was_written() -> None:
    """Cog reads the signature, the annotations, and whether it is async."""
    assert inspect.iscoroutinefunction(Runner.run)
    assert not inspect.iscoroutinefunction(train)
    assert list(inspect.signature(Runner.run).parameters) == ["self", "workflow_json", "randomise_seeds"]
    assert inspect.signature(train).parameters["loras"].annotation == "str | None"
    assert train.__doc__ == "What it was called with."
