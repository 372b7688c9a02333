"""What a person may choose of a LoRA training: ComfyUI's names, ranges and defaults, checked all at once. Pure.

The source is TrainLoraNode of ComfyUI 0.30.0 (comfy_extras/nodes_train.py). What is not among its inputs is ours:
`lora_name`, `trigger_word`, `resolution`, `fit`, `sample_prompt` and `sample_every`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from comfyui.errors import TrainingInputError
from comfyui.training.fitting import FITS, MAX_RESOLUTION, STEP
from comfyui.weights.folders import safe_file_name

OPTIMIZERS = ("AdamW", "Adam", "SGD", "RMSprop")
LOSS_FUNCTIONS = ("MSE", "L1", "Huber", "SmoothL1")
ALGORITHMS = ("LoRA", "LoHa", "LoKr", "OFT")
TRAINING_DTYPES = ("bf16", "fp32", "none")
LORA_DTYPES = ("bf16", "fp32")

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
        "resolution": (STEP, MAX_RESOLUTION),
        "seed": (0, 2**64 - 1),
        "sample_every": (0, 100_000),
    }
)
MAX_SAMPLES = 50
"""Each costs 20 steps of sampling, and a new beginning of the optimizer."""
_TEXTS = ("lora_name", "trigger_word", "sample_prompt")
SEED_STRIDE = 1000
"""TrainSampler adds this to the seed at each step, and torch takes no seed above 2^64 - 1."""


@dataclass(frozen=True)
class TrainingParameters:
    """How one LoRA is trained.

    `resolution` is the side in pixels of the square that a picture is cut to ("crop") or whose area it gets with a
    shape near its own ("buckets"); `training_dtype` "none" leaves the model in its own type; `sample_every` is how many
    steps are between two samples, 0 for samples at the end alone. Raises TrainingInputError that names every value that
    cannot be used.
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
    sample_every: int = 0

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
        """The parameters in their final form, for the log, with a word on those that cost more than they seem to."""
        lines = [f"  {name} = {value!r}" for name, value in self.as_dict().items()]
        if self.batch_size > 1:
            lines.append(
                f"Note: ComfyUI's training computes each picture of a batch with the captions of all, so batch_size "
                f"{self.batch_size} takes {self.batch_size**2} times the work and memory of 1. batch_size 1 with "
                f"grad_accumulation_steps {self.batch_size} sees as many pictures in each step for less."
            )
        return lines

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
            elif name == "resolution" and value % STEP:
                yield name, f"{name} is {value}; it is a multiple of {STEP}."
        if not isinstance(self.gradient_checkpointing, bool):
            text = f"gradient_checkpointing is {self.gradient_checkpointing!r:.100}; it is true or false."
            yield "gradient_checkpointing", text
        yield from self._seed_problem()
        if type(self.sample_every) is int and type(self.steps) is int and self.sample_every > 0:
            samples = (self.steps - 1) // self.sample_every
            if samples > MAX_SAMPLES:
                text = f"sample_every is {self.sample_every}; with {self.steps} steps these are {samples} samples, and "
                yield "sample_every", f"{text}{MAX_SAMPLES} are the most."

    def _seed_problem(self) -> Iterator[tuple[str, str]]:
        numbers = (self.seed, self.steps, self.grad_accumulation_steps)
        if not all(type(number) is int for number in numbers) or self.seed > _RANGES["seed"][1]:
            return
        largest = int(_RANGES["seed"][1]) - SEED_STRIDE * self.passes
        if self.seed > largest:
            yield "seed", f"seed is {self.seed}; with so many steps it may be {largest} at most."


def _is_file_stem(text: str) -> bool:
    name = f"{text}.safetensors"
    # A name that is cut to fit, or mended, is not the one a workflow would ask for.
    return bool(text) and not text.endswith(".safetensors") and safe_file_name(name) == name


def _shown(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
