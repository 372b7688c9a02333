"""What a trained LoRA says of itself, in Kohya's words and ours."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from comfyui.training.dataset import TrainingImage
from comfyui.training.metadata import Provenance, lora_metadata, old_model_hash
from comfyui.training.parameters import TrainingParameters
from comfyui.training.tensors import Tensor

IMAGES = [
    TrainingImage(Path("0.png"), "fox, red fur", 10, 64, 64, "10_fox/a.jpg"),
    TrainingImage(Path("1.png"), "fox, snow, ", 10, 64, 64, "10_fox/b.jpg"),
    TrainingImage(Path("2.png"), "", 1, 64, 64, "c.jpg"),
]
PROVENANCE = Provenance("base.safetensors", "a" * 64, "12345678", "sd_v1", "b" * 64, "0.30.0", 0.25)


def metadata(provenance: Provenance = PROVENANCE, **values: object) -> dict[str, str]:
    tensors = {"diffusion_model.a.lora_down.weight": Tensor("BF16", (16, 2), bytes(64))}
    return lora_metadata(TrainingParameters(**values), provenance, IMAGES, tensors, b"data")  # type: ignore[arg-type]


def test_kohyas_keys_say_what_was_done() -> None:
    found = metadata(steps=100, learning_rate=0.0001, trigger_word="fox", loss_function="L1", training_dtype="none")
    assert json.loads(found["ss_tag_frequency"]) == {"10_fox": {"fox": 2, "red fur": 1, "snow": 1}, "img": {}}
    assert json.loads(found["ss_dataset_dirs"])["10_fox"] == {"n_repeats": 10, "img_count": 2}
    expected = {
        "ss_num_train_images": "21",
        "ss_learning_rate": "0.0001",
        "ss_network_dim": "16",
        "ss_network_alpha": "1.0",
        "ss_loss_type": "l1",
        "ss_mixed_precision": "None",
        "ss_training_comment": "trigger word: fox",
        "ss_sd_model_hash": "12345678",
        "ss_new_sd_model_hash": "a" * 64,
        "ss_v2": "False",
        "ss_steps": "100",
        "sshs_model_hash": hashlib.sha256(b"data").hexdigest(),
    }
    assert {key: found[key] for key in expected} == expected


def test_everything_is_text_and_nothing_is_a_time() -> None:
    found = metadata()
    assert all(isinstance(value, str) for value in found.values())
    assert not [key for key in found if "time" in key or "date" in key or "started" in key]
    assert found == metadata()


def test_a_continued_lora_names_the_one_before() -> None:
    later = Provenance(
        "b", "a" * 64, "1", "sd_v1", "b" * 64, "0.30.0", 0.25, existing_sha256="c" * 64, previous_steps=50
    )
    found = metadata(later, steps=100)
    assert (found["ss_steps"], found["ss_max_train_steps"]) == ("150", "100")
    assert found["comfyui_existing_lora_sha256"] == "c" * 64
    assert "comfyui_existing_lora_sha256" not in metadata()


def test_the_old_hash_is_the_one_of_old_tools() -> None:
    assert old_model_hash(b"x" * 65536) == hashlib.sha256(b"x" * 65536).hexdigest()[:8]
