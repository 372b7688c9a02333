"""What scripts/generate lets a person set, how each text is read, and the small file with their own names and defaults.

Every wrong value is an ArgumentTypeError, which argparse explains; a mistake in the file is explained the same way.
"""

from __future__ import annotations

import argparse
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui.local.generate.workflow import MIN_SIDE, SIZE_STEP
from comfyui.prediction import OUTPUT_FORMATS
from comfyui.suggest import nearest_input

MAX_SEED = 2**64 - 1
"""As KSampler takes it (ComfyUI, nodes.py)."""
STRENGTHS = (-100.0, 100.0)
"""As LoraLoader takes them (ComfyUI, nodes.py)."""
_STRENGTH_BEHIND = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))", re.DOTALL)


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA as the person named it; `strength` None where they left it to --strength."""

    name: str
    strength: float | None


def is_link(name: str) -> bool:
    """Whether a checkpoint or LoRA is named by a link, which the predictor fetches, and not by a file's name."""
    return "://" in name


def lora_choice(text: str) -> LoraChoice:
    """A LoRA as typed: NAME or NAME:STRENGTH. Raises ArgumentTypeError for a strength that is none."""
    if found := _STRENGTH_BEHIND.fullmatch(text):
        return LoraChoice(found[1], _strength(found[2]))
    if not text or (":" in text and not is_link(text)):
        raise argparse.ArgumentTypeError(f"{text!r} names no LoRA; write NAME or NAME:STRENGTH, as in mimi:0.8.")
    return LoraChoice(text, None)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number.")
    return number


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number.")
    return int(text)


def read_count(text: str) -> int:
    """A number of things, from 1."""
    if (number := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1.")
    return number


def read_seed(text: str) -> int:
    """A seed, as KSampler takes it."""
    if not 0 <= (number := _whole(text)) <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is no seed: they go from 0 to {MAX_SEED}.")
    return number


def _strength(text: str) -> float:
    low, high = STRENGTHS
    if not low <= (number := _number(text)) <= high:
        raise argparse.ArgumentTypeError(f"{text} is no strength: they go from {low:g} to {high:g}, mostly 0 to 1.")
    return number


def _fraction(text: str) -> float:
    if not 0 <= (number := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1.")
    return number


def _percent(text: str) -> int:
    if not 0 <= (number := _whole(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100.")
    return number


def read_seconds(text: str) -> float:
    """A time in seconds, from 0."""
    if (number := _number(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than no time.")
    return number


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})(?:[xX×](\d{1,5}))?", text.strip(), re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT in pixels, as in 832x1216, or 1024.")
    size = int(found[1]), int(found[2] or found[1])
    if min(size) < MIN_SIDE or any(side % SIZE_STEP for side in size):
        near = "x".join(str(max(MIN_SIDE, SIZE_STEP * round(side / SIZE_STEP))) for side in size)
        raise argparse.ArgumentTypeError(
            f"{text} is no size: both sides are multiples of {SIZE_STEP}, from {MIN_SIDE}; as in {near}."
        )
    return size


def _format(text: str) -> str:
    if text not in OUTPUT_FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} is no format; there are {', '.join(OUTPUT_FORMATS)}.")
    return text


@dataclass(frozen=True)
class Setting:
    """A flag that the file may set too: how its text is read, its default (as text, None for none), and its help."""

    metavar: str
    read: Callable[[str], Any]
    default: str | None
    help: str


SETTINGS: Mapping[str, Setting] = {
    "checkpoint": Setting(
        "NAME", str, None, "file of the server's models/checkpoints, or a link (default: the only one)"
    ),
    "negative": Setting("TEXT", str, "", "what the picture does not show"),
    "strength": Setting("X", _strength, "0.8", "of LoRAs that have none of their own"),
    "steps": Setting("N", read_count, "28", "of the sampler"),
    "cfg": Setting("X", _number, "7", "how closely the prompt is followed"),
    "size": Setting("WxH", _size, "1024x1024", "in pixels; with --image and no --size, its shape is kept"),
    "sampler": Setting("NAME", str, "euler_ancestral", "as KSampler has it"),
    "scheduler": Setting("NAME", str, "normal", "as KSampler has it"),
    "denoise": Setting("X", _fraction, "0.6", "how much of --image goes, from 0 to 1"),
    "format": Setting("NAME", _format, "png", f"{', '.join(OUTPUT_FORMATS)}"),
    "quality": Setting("N", _percent, "95", "of webp and jpg, from 0 to 100"),
}


@dataclass(frozen=True)
class Config:
    """The file: settings by the names of the flags, and short names of LoRAs."""

    path: Path
    settings: Mapping[str, Any]
    loras: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, *, needed: bool) -> Config:
        """Read it; one that is not there is empty unless `needed`. Raises ArgumentTypeError for all that is wrong."""
        if not needed and not path.exists():
            return cls(path, {}, {})
        try:
            settings = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{path} cannot be read: {error}.") from error
        loras = settings.pop("loras", {})
        for key, value in settings.items():
            if key in SETTINGS and (isinstance(value, bool) or not isinstance(value, str | int | float)):
                raise argparse.ArgumentTypeError(f"{path}, {key}: {value!r} is neither a text nor a number.")
            if key not in SETTINGS:
                near = nearest_input(key, list(SETTINGS))
                hint = f"did you mean {near!r}?" if near else f"it may have {', '.join(SETTINGS)} and [loras]."
                raise argparse.ArgumentTypeError(f"{path} has {key!r}, which is no setting; {hint}")
        if not isinstance(loras, dict) or not all(isinstance(value, str) for value in loras.values()):
            raise argparse.ArgumentTypeError(f'{path}: [loras] holds lines such as mimi = "mimi_v3.safetensors:0.7".')
        return cls(path, settings, loras)

    def value(self, name: str) -> Any:
        """A setting, read as its flag would be; what is built in where the file says nothing."""
        setting = SETTINGS[name]
        if name not in self.settings:
            return None if setting.default is None else setting.read(setting.default)
        try:
            return setting.read(str(self.settings[name]))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{self.path}, {name}: {error}") from error

    def lora(self, typed: LoraChoice) -> LoraChoice:
        """What --lora means: a short name stands for its line in the file, and a strength typed counts first."""
        if typed.name not in self.loras:
            return typed
        try:
            meant = lora_choice(self.loras[typed.name])
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{self.path}, loras.{typed.name}: {error}") from error
        return meant if typed.strength is None else LoraChoice(meant.name, typed.strength)
