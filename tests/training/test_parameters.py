"""Parameters of a training: ComfyUI's own, all that is wrong said at once."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest

import train
from comfyui.errors import TrainingInputError
from comfyui.settings import PROJECT_ROOT, Settings
from comfyui.training import parameters as module
from comfyui.training.parameters import TrainingParameters

IN_COMFYUI = ["steps", "learning_rate", "rank", "batch_size", "grad_accumulation_steps", "optimizer", "loss_function"]
IN_COMFYUI += ["training_dtype", "lora_dtype", "gradient_checkpointing", "seed"]


def node_inputs(settings: Settings) -> dict[str, dict[str, Any]]:
    """The inputs that TrainLoraNode declares, read from ComfyUI's source without running it."""
    source = (settings.upstream_dir / "comfy_extras" / "nodes_train.py").read_text("utf-8")
    node = next(
        entry for entry in ast.parse(source).body if isinstance(entry, ast.ClassDef) and entry.name == "TrainLoraNode"
    )
    found = {}
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            values = {}
            for keyword in call.keywords:
                try:
                    values[str(keyword.arg)] = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
            found[str(call.args[0].value)] = values
    return found


def test_names_ranges_and_defaults_are_those_of_comfyui(settings: Settings) -> None:
    inputs = node_inputs(settings)
    defaults = TrainingParameters()
    for name in IN_COMFYUI:
        declared = inputs[name]
        assert getattr(defaults, name) == declared["default"], name
        if "options" in declared:
            assert module._CHOICES[name] == tuple(declared["options"])
        elif "min" in declared:
            assert module._RANGES[name] == (declared["min"], declared["max"])


def test_the_algorithms_are_those_of_comfyui(settings: Settings) -> None:
    source = (settings.upstream_dir / "comfy" / "weight_adapter" / "__init__.py").read_text("utf-8")
    for entry in ast.parse(source).body:
        if isinstance(entry, ast.AnnAssign) and getattr(entry.target, "id", "") == "adapter_maps":
            assert isinstance(entry.value, ast.Dict)
            names = tuple(key.value for key in entry.value.keys if isinstance(key, ast.Constant))
            assert names == module.ALGORITHMS
            return
    raise AssertionError("ComfyUI has no adapter_maps any more")


def test_train_has_the_same_defaults_choices_and_ranges() -> None:
    """Cog reads its signature as text, so it is written out there once more."""
    inputs = inspect.signature(train.train.__wrapped__)  # type: ignore[attr-defined]
    defaults = TrainingParameters().as_dict()
    declared = {
        argument.arg: {keyword.arg: ast.literal_eval(keyword.value) for keyword in default.keywords}
        for argument, default in _declared_inputs()
    }
    for name, default in defaults.items():
        assert inputs.parameters[name].default == default, name
        assert declared[name].get("choices") == (list(module._CHOICES[name]) if name in module._CHOICES else None)
        if name in module._RANGES and name != "seed":
            assert (declared[name]["ge"], declared[name]["le"]) == module._RANGES[name]


def _declared_inputs() -> list[tuple[ast.arg, ast.Call]]:
    function = next(node for node in ast.parse(inspect.getsource(train)).body if isinstance(node, ast.AsyncFunctionDef))
    pairs = zip(function.args.args, function.args.defaults, strict=True)
    return [(argument, default) for argument, default in pairs if isinstance(default, ast.Call)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps is 0; it is a whole number from 1 to 100000."),
        ({"steps": True}, "steps is True; it is a whole number from 1 to 100000."),
        ({"steps": "20"}, "steps is '20'; it is a whole number from 1 to 100000."),
        ({"learning_rate": 2}, "learning_rate is 2; it is a number from 1e-07 to 1."),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it is a number from 1e-07 to 1."),
        ({"resolution": 100}, "resolution is 100; it is a multiple of 64."),
        ({"training_dtype": "fp16"}, "training_dtype is 'fp16'; it is one of bf16, fp32, none."),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing is 'yes'; it is true or false."),
        ({"lora_name": "a/b"}, "lora_name is 'a/b'; it is the LoRA's file name without its ending: my_lora."),
        ({"lora_name": ""}, "lora_name is ''; it is the LoRA's file name without its ending: my_lora."),
        ({"lora_name": "a.safetensors"}, "without its ending"),
        ({"lora_name": None}, "lora_name is None; it is a text."),
        ({"seed": 2**64 - 1}, f"seed is {2**64 - 1}; with so many steps it may be {2**64 - 1 - 16000} at most."),
        ({"sample_every": 10, "steps": 1500}, "sample_every is 10; with 1500 steps these are 149 samples, and 50 are"),
        ({"seed": -1}, f"seed is -1; it is a whole number from 0 to {2**64 - 1}."),
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingInputError) as caught:
        TrainingParameters(**values)
    assert said in str(caught.value)
    assert caught.value.input_name == next(iter(values))


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(TrainingInputError) as caught:
        TrainingParameters(steps=0, rank=500, optimizer="Lion")
    assert all(word in str(caught.value) for word in ("steps is 0", "rank is 500", "optimizer is 'Lion'"))
    assert caught.value.input_name is None


def test_the_cost_of_a_batch_is_told() -> None:
    (note,) = TrainingParameters(batch_size=4).lines()[len(TrainingParameters().lines()) :]
    assert "batch_size 4 takes 16 times the work and memory of 1" in note
    assert "grad_accumulation_steps 4" in note


def test_the_page_has_a_row_for_every_parameter() -> None:
    page = (PROJECT_ROOT / "docs" / "training.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*?)\|", page, re.MULTILINE))
    for name, default in TrainingParameters().as_dict().items():
        shown = {"sample_prompt": "the trigger word", "trigger_word": ""}.get(name, f"{default}")
        assert rows[name].strip(" `").lower() == shown.lower(), name


def test_the_final_form_names_every_value() -> None:
    parameters = TrainingParameters(steps=100, grad_accumulation_steps=4)
    assert "  steps = 100" in parameters.lines()
    assert len(parameters.lines()) == len(parameters.as_dict())
    assert (parameters.passes, parameters.file_name) == (400, "my_lora.safetensors")
