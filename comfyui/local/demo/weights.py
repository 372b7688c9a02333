"""Tiny weights for the quickstart, the tests and the benchmarks: made here in seconds, nothing to download.

They are not trained and show no fox in any snow; but ComfyUI's real loaders and samplers run them, on a CPU, and the
picture follows seed, prompt and LoRA strength. The same recipe always gives the same bytes.

    python -m comfyui.local.demo.weights models            every file
    python -m comfyui.local.demo.weights models loras/tiny-sd15-lora
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from comfyui.errors import RequestError
from comfyui.local.demo import models as tiny_models
from comfyui.local.demo.layers import is_complete, save_half

if TYPE_CHECKING:
    from comfyui.local.demo.layers import Tensors


@dataclass(frozen=True)
class Recipe:
    """How one file is made. Raise `version` whenever the bytes change: files of another version are made anew."""

    make: Callable[[], Tensors]
    version: int = 1

    def metadata(self, name: str) -> dict[str, str]:
        """What the file's header says about it."""
        return {"made_by": "comfyui.local.demo.weights", "name": name, "version": str(self.version)}


RECIPES: dict[str, Recipe] = {
    "checkpoints/tiny-sd15": Recipe(tiny_models.sd15),
    "checkpoints/tiny-sd3-notext": Recipe(tiny_models.sd3_without_text),
    "controlnet/tiny-sd15-control": Recipe(tiny_models.sd15_control),
    "loras/tiny-sd15-lora": Recipe(tiny_models.sd15_lora),
    "loras/tiny-sd15-lora-2": Recipe(partial(tiny_models.sd15_lora, seed=7)),
    "loras/tiny-sd3-lora": Recipe(tiny_models.sd3_lora),
}


def make_demo_weights(models_dir: Path, names: Iterable[str]) -> list[Path]:
    """Make the named files (keys of RECIPES) below `models_dir`; return their paths, in the order of `names`.

    A file that is there and complete is left alone. Two calls at once are safe: each writes its own temporary file and
    both come to the same bytes. Raises RequestError for a name it does not know, before anything is written.
    """
    names = list(names)
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise RequestError(f"No demo weights are called {', '.join(unknown)}; there are: {', '.join(RECIPES)}.")
    paths = []
    for name in names:
        recipe = RECIPES[name]
        path = models_dir / f"{name}.safetensors"
        if not is_complete(path, recipe.metadata(name)):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_half(recipe.make(), path, recipe.metadata(name))
        paths.append(path)
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: prints the path of each file and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m comfyui.local.demo.weights",
        description="Make tiny demo weights below a models folder; files that are there already are left alone.",
    )
    parser.add_argument("models_dir", metavar="DIR", type=Path, help="the models folder; made where it is missing")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"default: all of {', '.join(RECIPES)}")
    options = parser.parse_args(argv)
    try:
        for path in make_demo_weights(options.models_dir, options.names or RECIPES):
            print(path)
    except (RequestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
