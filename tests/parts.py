"""Real parts that several test files share: demo weights made once per machine, example workflows, log lines."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfyui.local.demo.weights import make_demo_weights
from comfyui.settings import PROJECT_ROOT

TEST_MODELS = PROJECT_ROOT / ".data" / "test-models"
"""Kept between runs: making them takes longer than most tests."""
SD15 = ("checkpoints/tiny-sd15", "loras/tiny-sd15-lora")
SD3 = ("checkpoints/tiny-sd3-notext",)


def demo_files(*names: str) -> dict[str, Path]:
    """The demo weights by their place in a models folder ("loras/tiny-sd15-lora.safetensors")."""
    return {
        f"{name}.safetensors": path for name, path in zip(names, make_demo_weights(TEST_MODELS, names), strict=True)
    }


def example(name: str, **values: Any) -> dict[str, Any]:
    """An example workflow of the project; each value replaces the input of that name in every node that has it."""
    workflow: dict[str, Any] = json.loads((PROJECT_ROOT / "examples" / "workflows" / f"{name}.json").read_text("utf-8"))
    for node in workflow.values():
        node["inputs"].update({key: value for key, value in values.items() if key in node["inputs"]})
    return workflow


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Stands for a disk that takes no more: what this process writes to a file beyond `size` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


EMPTY_IMAGE = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0xFF8000},
        "_meta": {"title": "Orange"},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "orange"}},
}
"""The quickest workflow there is: no weights, one small picture."""
