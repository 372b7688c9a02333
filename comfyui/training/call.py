"""One training call with pictures: from them and the links of a bake to a tar that holds the trained LoRA as well.

Everything that can be known to be wrong is said before the first byte of the checkpoint is fetched: parameters, then
pictures, then links.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from comfyui.engine.upstream import check_upstream
from comfyui.errors import TrainingInputError
from comfyui.run import Limits
from comfyui.scratch import new_run_dir, remove_run_dir
from comfyui.settings import Settings
from comfyui.training.dataset import prepare_dataset, report
from comfyui.training.in_tar import LoraInTar, TrainingOrder, Workplace
from comfyui.training.links import Links
from comfyui.training.parameters import TrainingParameters
from comfyui.training.progress import PlainReport
from comfyui.weights.bake.bake import bake
from comfyui.weights.listener import PlainLines
from comfyui.weights.manifest import Manifest
from comfyui.weights.sources import Tokens


@dataclass(frozen=True)
class TrainingCall:
    """The inputs of a training that are about its LoRA. `images` is a zip, a tar or a folder; times are in seconds, 0
    for none.
    """

    images: Path
    parameters: TrainingParameters
    base_checkpoint: str | None = None
    existing_lora: str | None = None
    timeout: float = 86400
    stall_timeout: float = 1800

    def __post_init__(self) -> None:
        for name in ("timeout", "stall_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise TrainingInputError(
                    f"{name} is {value!r:.100}; it is a number of seconds, or 0 for no limit.", input_name=name
                )

    @property
    def limits(self) -> Limits:
        """How long ComfyUI may take."""
        return Limits(self.timeout or None, self.stall_timeout or None)


def check_no_pictures(**given: str | None) -> None:
    """Raise TrainingInputError for inputs that are about a LoRA in a call without pictures, which were forgotten."""
    if names := [name for name, value in given.items() if value]:
        raise TrainingInputError(
            f"{' and '.join(names)}: this is for training a LoRA, and there are no pictures to train it from. Give "
            "training_images, a zip or tar of them, or leave it out.",
            input_name="training_images",
        )


def train_and_bake(
    call: TrainingCall,
    request: Mapping[str, str | None],
    out: Path,
    settings: Settings,
    tokens: Tokens,
    say: Callable[[str], None],
    log: Callable[[str], None],
    stop: Event,
    *,
    allow_pickle: bool = False,
) -> Manifest:
    """Train the LoRA on a checkpoint of `request`, and bake both, and all else in `request`, into the tar `out`.

    `say` takes lines for the person who waits, `log` what ComfyUI prints while it starts; both from any thread. Raises
    as `bake` and `train_lora` do, StoppedError once `stop` is set; then there is no tar.
    """
    check_upstream(settings)
    parameters = call.parameters
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = new_run_dir(settings.data_dir / "runs")
    try:
        dataset = prepare_dataset(
            call.images,
            folder / "dataset",
            resolution=parameters.resolution,
            fit=parameters.fit,
            trigger_word=parameters.trigger_word,
            stop=stop,
        )
        lines = report(
            dataset,
            batch_size=parameters.batch_size,
            grad_accumulation_steps=parameters.grad_accumulation_steps,
            steps=parameters.steps,
        )
        for line in lines:
            say(line)
        say("The LoRA is trained with")
        for line in parameters.lines():
            say(line)
        listener = PlainLines(say)
        order = TrainingOrder(dataset, parameters, call.limits, call.base_checkpoint, call.existing_lora)
        lora = LoraInTar(order, Links(settings, tokens, listener), PlainReport(say), Workplace(folder, out, log))
        return bake(request, out, settings, tokens, listener, allow_pickle=allow_pickle, stop=stop, addition=lora)
    finally:
        remove_run_dir(folder)
