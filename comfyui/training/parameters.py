"""What a person may choose of a LoRA training: ComfyUI's names, ranges and defaults, checked all at once. Pure.

The source is TrainLoraNode of ComfyUI 0.30.0 (comfy_extras/nodes_train.py). What is not among its inputs is ours:
`lora_name`, `trigger_word`, `resolution`, `fit` and `sample_prompt`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from comfyui.errors import TrainingInputError
from comfyui.weights.folders import safe_file_name

OPTIMIZERS = ("AdamW", "Adam", "SGD", "RMSprop")
LOSS_FUNCTIONS = ("MSE", "L1", "Huber", "SmoothL1")
ALGORITHMS = ("LoRA", "LoHa", "LoKr", "OFT")
TRAINING_DTYPES = ("bf16", "fp32", "none")
LORA_DTYPES = ("bf16", "fp32")
FITS = ("buckets", "crop")
RESOLUTION_STEP = 8
"""A latent of these models is an eighth of the picture."""

_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "optimizer": OPTIMIZERS,
        "loss_function": LOSS_FUNCTIONS,
        "algorithm": ALGORITHMS,
        "training_dtype": TRAINING_DTYPES,
        "lora_dtype": LORA_DTYPES,
        "fit": FITS,
    }
)
_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "steps": (1, 100_000),
        "learning_rate": (0.0000001, 1.0),
        "rank": (1, 128),
        "batch_size": (1, 10_000),
        "grad_accumulation_steps": (1, 1024),
        "resolution": (64, 2048),
        "seed": (0, 2**64 - 1),
    }
)
_TEXTS = ("lora_name", "trigger_word", "sample_prompt")
_SEED_STRIDE = 1000
"""TrainSampler adds this to the seed at each step, and torch takes no seed above 2^64 - 1."""


@dataclass(frozen=True)
class TrainingParameters:
    """How one LoRA is trained.

    `resolution` is the side in pixels of the square that a picture is cut to ("crop") or whose area it gets with a
    shape near its own ("buckets"); `training_dtype` "none" leaves the model in its own type. Raises TrainingInputError
    that names every value that cannot be used.
    """

    lora_name: str = "my_lora"
    trigger_word: str = ""
    steps: int = 16
    learning_rate: float = 0.0005
    rank: int = 8
    batch_size: int = 1
    grad_accumulation_steps: int = 1
    optimizer: str = "AdamW"
    loss_function: str = "MSE"
    algorithm: str = "LoRA"
    training_dtype: str = "bf16"
    lora_dtype: str = "bf16"
    gradient_checkpointing: bool = True
    resolution: int = 512
    fit: str = "buckets"
    seed: int = 0
    sample_prompt: str = ""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            name = problems[0][0] if len(problems) == 1 else None
            raise TrainingInputError(" ".join(text for _, text in problems), input_name=name)

    @property
    def file_name(self) -> str:
        """What the LoRA is called in the loras folder."""
        return f"{self.lora_name}.safetensors"

    @property
    def passes(self) -> int:
        """Forward and backward passes in all: each has a loss, and each step of the optimizer may take several."""
        return self.steps * self.grad_accumulation_steps

    def as_dict(self) -> dict[str, Any]:
        """Every parameter by its name."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The parameters in their final form, for the log."""
        return [f"  {name} = {value!r}" for name, value in self.as_dict().items()]

    def _problems(self) -> Iterator[tuple[str, str]]:
        values = self.as_dict()
        for name in _TEXTS:
            if not isinstance(values[name], str):
                yield name, f"{name} is {values[name]!r:.100}; it is a text."
        if isinstance(self.lora_name, str) and not _is_file_stem(self.lora_name):
            text = f"lora_name is {self.lora_name[:100]!r}; it is the LoRA's file name without its ending: my_lora."
            yield "lora_name", text
        for name, choices in _CHOICES.items():
            if values[name] not in choices:
                yield name, f"{name} is {values[name]!r:.100}; it is one of {', '.join(choices)}."
        for name, (low, high) in _RANGES.items():
            value = values[name]
            kinds = (int, float) if name == "learning_rate" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                kind = "a number" if name == "learning_rate" else "a whole number"
                yield name, f"{name} is {value!r:.100}; it is {kind} from {low:g} to {_shown(high)}."
            elif name == "resolution" and value % RESOLUTION_STEP:
                yield name, f"{name} is {value}; it is a multiple of {RESOLUTION_STEP}."
        if not isinstance(self.gradient_checkpointing, bool):
            text = f"gradient_checkpointing is {self.gradient_checkpointing!r:.100}; it is true or false."
            yield "gradient_checkpointing", text
        yield from self._seed_problem()

    def _seed_problem(self) -> Iterator[tuple[str, str]]:
        numbers = (self.seed, self.steps, self.grad_accumulation_steps)
        if not all(type(number) is int for number in numbers) or self.seed > _RANGES["seed"][1]:
            return
        largest = int(_RANGES["seed"][1]) - _SEED_STRIDE * self.passes
        if self.seed > largest:
            yield "seed", f"seed is {self.seed}; with so many steps it may be {largest} at most."


def _is_file_stem(text: str) -> bool:
    name = f"{text}.safetensors"
    # A name that is cut to fit, or mended, is not the one a workflow would ask for.
    return bool(text) and not text.endswith(".safetensors") and safe_file_name(name) == name


def _shown(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
