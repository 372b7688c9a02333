"""The LoRA that a training goes on from: taken up whole, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from comfyui.errors import WeightsError
from comfyui.training.base_model import BaseModel
from comfyui.training.continued import existing_lora, layers_name, with_offsets
from comfyui.training.tensors import Tensor

BASE = BaseModel("sd_v1", frozenset({"diffusion_model.a", "diffusion_model.norm"}))


def tensor(*values: float) -> Tensor:
    return Tensor("BF16", (len(values),) if len(values) > 1 else (), b"").with_numbers(np.array(values, np.float32))


LORA = {
    "diffusion_model.a.lora_up.weight": tensor(1, 2),
    "diffusion_model.a.lora_down.weight": tensor(3, 4),
    "diffusion_model.a.alpha": tensor(1),
    "diffusion_model.a.diff_b": tensor(0.5, 0.25),
    "diffusion_model.norm.diff": tensor(1, -1),
}


def test_layers_and_offsets_are_told_apart() -> None:
    lora = existing_lora(LORA, {"ss_steps": "120"}, BASE, "x")
    assert set(lora.offsets) == {"diffusion_model.a.diff_b", "diffusion_model.norm.diff"}
    assert set(lora.layers) == LORA.keys() - lora.offsets.keys()
    assert lora.steps == 120


@pytest.mark.parametrize("said", ["", "many", "-3", "9" * 30])
def test_steps_that_nobody_can_read_are_none(said: str) -> None:
    assert existing_lora(LORA, {"ss_steps": said}, BASE, "x").steps == 0


def test_the_name_of_the_layers_is_read_by_comfyui() -> None:
    # nodes_train.py, _load_existing_lora.
    assert int(layers_name(120).split("_steps_")[0].split("_")[-1]) == 120


@pytest.mark.parametrize(
    "name", ["lora_unet_a.lora_up.weight", "diffusion_model.b.lora_up.weight", "text_encoders.a.diff"]
)
def test_what_the_checkpoint_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="cannot be trained further") as caught:
        existing_lora({**LORA, name: tensor(1, 2)}, {}, BASE, "existing_lora")
    assert name in str(caught.value)


@pytest.mark.parametrize(("lora_dtype", "alpha"), [("F32", 1.0005), ("BF16", 4.0), ("F16", 0.5)])
def test_an_alpha_that_was_trained_is_multiplied_into_its_layer(lora_dtype: str, alpha: float) -> None:
    def typed(*values: float) -> Tensor:
        return Tensor(lora_dtype, (len(values),), b"").with_numbers(np.array(values, np.float32))

    tensors = {
        "diffusion_model.a.lora_up.weight": typed(1, -2),
        "diffusion_model.a.lora_down.weight": typed(3, 4),
        "diffusion_model.a.alpha": Tensor(lora_dtype, (), b"").with_numbers(np.array(alpha, np.float32)),
    }
    layers = existing_lora(tensors, {}, BASE, "x").layers
    assert layers["diffusion_model.a.alpha"].numbers().item() == 1.0
    assert layers["diffusion_model.a.lora_up.weight"].numbers() == pytest.approx([alpha, -2 * alpha])
    assert layers["diffusion_model.a.lora_down.weight"] == tensors["diffusion_model.a.lora_down.weight"]
    assert {tensor.dtype for tensor in layers.values()} == {lora_dtype}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"diffusion_model.a.hada_w1_a": tensor(1, 2), "diffusion_model.a.alpha": tensor(4)},
            "diffusion_model.a.alpha is not 1, which ComfyUI's training would take it for",
        ),
        ({**LORA, "diffusion_model.a.alpha": tensor(1, 1)}, "diffusion_model.a.alpha is not 1"),
        (
            {**LORA, "diffusion_model.a.alpha": Tensor("I64", (), b"\1" + bytes(7))},
            "diffusion_model.a.alpha is of type I64",
        ),
        ({**LORA, "diffusion_model.a.dora_scale": tensor(1)}, "would leave diffusion_model.a.dora_scale out"),
        ({**LORA, "diffusion_model.a.lora_mid.weight": tensor(1)}, "would leave diffusion_model.a.lora_mid.weight out"),
    ],
)
def test_what_the_training_would_not_take_up_is_refused(tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(WeightsError) as caught:
        existing_lora(tensors, {}, BASE, "existing_lora")
    assert "existing_lora cannot be trained further: " in str(caught.value)
    assert said in str(caught.value)


def test_offsets_are_added_to_what_was_trained_on_top_of_them() -> None:
    offsets = existing_lora(LORA, {}, BASE, "x").offsets
    trained = {"diffusion_model.norm.diff": tensor(0.5, 0.5), "diffusion_model.a.alpha": tensor(1)}
    joined = with_offsets(trained, offsets)
    assert joined["diffusion_model.norm.diff"].numbers().tolist() == [1.5, -0.5]
    assert joined["diffusion_model.a.diff_b"].numbers().tolist() == [0.5, 0.25]
    assert joined["diffusion_model.a.alpha"] == trained["diffusion_model.a.alpha"]
