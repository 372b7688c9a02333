"""A wrong name leads to the right one; all right names are always listed."""

from __future__ import annotations

import pytest

from comfyui.suggest import nearest_input, unknown_inputs_message
from comfyui.weights.folders import TRAINING_INPUTS

KNOWN = tuple(TRAINING_INPUTS)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("hf_lora", "loras"),
        ("hf_checkpoint", "checkpoints"),
        ("checkpoint_url", "checkpoints"),
        ("civitai_lora_urls", "loras"),
        ("vae", "vaes"),
        ("embeddings", "embedding_models"),
        ("controlnet", "controlnets"),
        ("Loras", "loras"),
        ("zzzz", None),
        ("", None),
    ],
)
def test_the_nearest_input(wrong: str, right: str | None) -> None:
    assert nearest_input(wrong, KNOWN) == right


def test_every_wrong_name_is_answered_and_all_right_ones_are_listed() -> None:
    message = unknown_inputs_message(["hf_lora", "zzzz"], ("loras", "vaes"))
    assert message == (
        "There is no input 'hf_lora'; did you mean 'loras'? There is no input 'zzzz'. The inputs are: loras, vaes."
    )
