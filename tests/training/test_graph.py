"""The graph of a training: the dataset's order, each picture encoded once, and one size or buckets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from comfyui.training.dataset import TrainingImage
from comfyui.training.graph import Continued, Prompt, repetitions, training_graph
from comfyui.training.parameters import TrainingParameters


def image(number: int, *, caption: str = "a", repeats: int = 1, size: tuple[int, int] = (64, 64)) -> TrainingImage:
    return TrainingImage(Path(f"{number:05d}.png"), caption, repeats, *size, source=f"{number}.jpg")


def graph(images: list[TrainingImage], continued: Continued | None = None, **values: Any) -> Prompt:
    return training_graph(images, TrainingParameters(**values), "base.safetensors", continued)


def of_class(prompt: Prompt, class_type: str) -> list[dict[str, Any]]:
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


def flattened(prompt: Prompt, link: list[Any]) -> list[str]:
    """The ids of the nodes behind a tree of CreateList nodes, in order."""
    node = prompt[link[0]]
    if node["class_type"] != "CreateList":
        return [link[0]]
    assert 1 <= len(node["inputs"]) <= 10
    assert list(node["inputs"]) == [f"inputs.input{number}" for number in range(len(node["inputs"]))]
    return [name for inner in node["inputs"].values() for name in flattened(prompt, inner)]


def test_every_picture_is_encoded_once_and_stands_in_the_datasets_order() -> None:
    prompt = graph([image(number, repeats=3 if number < 5 else 6) for number in range(123)])
    assert [node["image"] for node in of_class(prompt, "LoadImage")] == [f"{number:05d}.png" for number in range(123)]
    latents = flattened(prompt, prompt["seeded"]["inputs"]["latent_image"])
    assert latents[:7] == ["latent1", "latent2", "latent3", "latent4", "latent5", "latent6", "latent6"]
    assert len(latents) == 5 + 2 * 118
    assert len(flattened(prompt, prompt["seeded"]["inputs"]["positive"])) == len(latents)


def test_each_caption_is_encoded_once_and_stays_with_its_picture() -> None:
    prompt = graph([image(1, caption="a"), image(2, caption="b"), image(3, caption="a")])
    captions = flattened(prompt, prompt["seeded"]["inputs"]["positive"])
    assert [prompt[name]["inputs"]["text"] for name in captions] == ["a", "b", "a"]
    assert len(of_class(prompt, "CLIPTextEncode")) == 2


def test_pictures_of_one_size_need_no_buckets() -> None:
    prompt = graph([image(1), image(2)])
    assert not of_class(prompt, "ResolutionBucket")
    assert prompt["train"]["inputs"]["bucket_mode"] is False
    assert prompt["train"]["inputs"]["latents"] == ["seeded", 0]


def test_pictures_of_several_sizes_are_put_into_buckets() -> None:
    prompt = graph([image(1), image(2, size=(64, 128))])
    assert prompt["train"]["inputs"]["bucket_mode"] is True
    assert prompt["train"]["inputs"]["latents"] == ["buckets", 0]
    assert prompt["train"]["inputs"]["positive"] == ["buckets", 1]


def test_the_seed_is_set_after_everything_else_and_changes_no_latent() -> None:
    seeded = graph([image(1), image(2)], seed=7)["seeded"]["inputs"]
    assert (seeded["seed"], seeded["denoise"]) == (7, 0.0)


def test_a_continued_lora_is_named_and_its_norms_are_laid_onto_the_base() -> None:
    prompt = graph([image(1)], Continued("x_5_steps_.safetensors", "offsets.safetensors"))
    assert prompt["train"]["inputs"]["existing_lora"] == "x_5_steps_.safetensors"
    assert prompt["train"]["inputs"]["model"] == ["offsets", 0]
    assert prompt["offsets"]["inputs"]["strength_model"] == 1.0
    assert graph([image(1)], Continued("x_5_steps_.safetensors", None))["train"]["inputs"]["model"] == ["base", 0]


def test_repeats_keep_their_proportions() -> None:
    images = [image(1, repeats=20), image(2, repeats=10), image(3, repeats=30)]
    assert repetitions(images, 1) == [2, 1, 3]


def test_a_batch_is_filled_as_far_as_the_repeats_allow() -> None:
    assert repetitions([image(1, repeats=10), image(2, repeats=10)], 8) == [4, 4]
    assert repetitions([image(1, repeats=3)], 8) == [3]
    sizes = [image(1, repeats=10), image(2, repeats=10), image(3, repeats=10, size=(64, 128))]
    assert repetitions(sizes, 4) == [4, 4, 4]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 50))
def test_repeats_are_never_more_than_the_dataset_says_and_keep_proportion(repeats: list[int], batch: int) -> None:
    found = repetitions([image(number, repeats=count) for number, count in enumerate(repeats)], batch)
    assert all(1 <= times <= count for times, count in zip(found, repeats, strict=True))
    assert all(times * repeats[0] == count * found[0] for times, count in zip(found, repeats, strict=True))
    assert sum(found) >= min(batch, sum(repeats))
