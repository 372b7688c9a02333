"""train() has exactly the inputs that comfyui.weights bakes: Cog reads its signature as text, so it is written out."""

from __future__ import annotations

import inspect

import train
from comfyui.weights.folders import TRAINING_INPUTS

OTHERS = ["huggingface_read_token", "civitai_api_token", "allow_pickle"]


def test_every_list_of_weights_is_an_input_and_nothing_else_is() -> None:
    assert list(inspect.signature(train.train).parameters) == [*TRAINING_INPUTS, *OTHERS]
