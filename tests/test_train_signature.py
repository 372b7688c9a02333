"""train() has exactly the inputs that weights are baked and LoRAs trained by: Cog reads its signature as text."""

from __future__ import annotations

import dataclasses
import inspect

import train
from comfyui.training.call import TrainingCall
from comfyui.training.parameters import TrainingParameters
from comfyui.weights.folders import TRAINING_INPUTS

OTHERS = ["huggingface_read_token", "civitai_api_token", "allow_pickle"]


def test_every_list_of_weights_and_every_parameter_of_a_lora_is_an_input_and_nothing_else_is() -> None:
    names = list(inspect.signature(train.train).parameters)
    lists = [*TRAINING_INPUTS, *OTHERS]
    assert names[: len(lists)] == lists
    of_a_call = {field.name for field in dataclasses.fields(TrainingCall)} - {"images", "parameters"}
    parameters = {field.name for field in dataclasses.fields(TrainingParameters)}
    assert sorted(names[len(lists) :]) == sorted({"training_images"} | of_a_call | parameters)
