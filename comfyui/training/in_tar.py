"""A LoRA that is trained on a checkpoint of a bake, and goes into the same tar.

    pictures ─► dataset ─┐
    checkpoint's header ─┼─► refused, or all files are fetched into the tar ─► the checkpoint out of it, proven again,
    existing LoRA ───────┘   into a models folder of this training ─► ComfyUI ─► LoRA and papers ─► the end of the tar

Nothing is fetched twice: the checkpoint's bytes come out of the unfinished tar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from comfyui.errors import TrainingInputError
from comfyui.run import Limits
from comfyui.threads import run_until
from comfyui.training.base_model import BaseModel, check_name
from comfyui.training.continued import check_size, existing_lora
from comfyui.training.dataset import Dataset
from comfyui.training.follow import Patience
from comfyui.training.links import Links, base_of, probe, staging
from comfyui.training.parameters import TrainingParameters
from comfyui.training.progress import Report
from comfyui.training.tensors import Tensor, read_tensors
from comfyui.training.trainer import UNPROVEN_CHARS, Base, Existing, TrainedLora, paper_names, train_lora
from comfyui.weights.bake.wanted import Found
from comfyui.weights.bring.fetch import Needed, given_up
from comfyui.weights.disk import require_room
from comfyui.weights.folders import path_key
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.manifest import Weight
from comfyui.weights.transfer.readers import FileReader

FROM_THE_TAR = "the tar that is being baked"
HEADROOM_BYTES = 512 * 1024**2
"""For pictures, samples, and what ComfyUI writes beside them."""
LORA_COPIES = 4
"""That of a training that is continued, ComfyUI's, the one that is proven, and the one in the tar."""


@dataclass(frozen=True)
class TrainingOrder:
    """What to train on what. `base_checkpoint` is a file name of those given in `checkpoints`, None for the first;
    `existing_lora` a link to a LoRA to go on from, None for a new one.
    """

    dataset: Dataset
    parameters: TrainingParameters
    limits: Limits
    base_checkpoint: str | None = None
    existing_lora: str | None = None


@dataclass(frozen=True)
class Workplace:
    """Where a training happens: `folder` is its own, removed by the caller afterwards; `tar` is what is being baked.

    `log` gets, from any thread, what ComfyUI prints while it starts and ends.
    """

    folder: Path
    tar: Path
    log: Callable[[str], None]

    @property
    def models(self) -> Path:
        """ComfyUI's models folder for this training alone."""
        return self.folder / "models"


class LoraInTar:
    """An Addition to a bake: see `comfyui.weights.bake.addition`."""

    def __init__(
        self,
        order: TrainingOrder,
        links: Links,
        report: Report,
        workplace: Workplace,
    ) -> None:
        self._order = order
        self._links = links
        self._report = report
        self._workplace = workplace
        self._base_path = ""
        self._record: Mapping[str, Any] = {}
        self._existing: tuple[Mapping[str, Tensor], Mapping[str, str], str] | None = None

    @property
    def members(self) -> Sequence[str]:
        """The papers, then the LoRA. Samples that could not be made are not among what is made."""
        parameters = self._order.parameters
        return [*(f"training/{name}" for name in paper_names(parameters)), f"loras/{parameters.file_name}"]

    @property
    def record_bytes(self) -> int:
        """Parameters and the sample's prompt, and room for the rest: digests, names, numbers, why it is not proven."""
        known = [self._order.parameters.as_dict(), self._order.dataset.images[0].caption]
        return 2 * len(json.dumps(known, ensure_ascii=False).encode()) + 4096 + 6 * UNPROVEN_CHARS

    @property
    def record(self) -> Mapping[str, Any]:
        """The same as in training/parameters.json, and the path of the LoRA. Empty before it is made."""
        return self._record

    def check(self, found: Sequence[Found], opener: HttpOpener, stop: Event) -> None:
        """Refuse a checkpoint that cannot be trained on, from its header where its server gives ranges; fetch the LoRA
        to go on from. Raises TrainingInputError, WeightsError, DownloadError, StorageError.
        """
        base = self._choose(found)
        self._base_path = base.path
        lora = path_key(self.members[-1])
        if any(path_key(other.path) == lora for other in found):
            raise TrainingInputError(
                f"lora_name {self._order.parameters.lora_name!r} is taken: a file of that name is among the loras. "
                "Give another name.",
                input_name="lora_name",
            )
        check_name(base.path)
        model = probe(base.remote, base.path, opener)
        self._check_room(found, base, model)
        if self._order.existing_lora is not None:
            self._existing = self._fetch_existing(self._order.existing_lora, opener, stop)
            if model is not None:
                self._continue_on(model)

    def make(self, tar: Path, weights: Sequence[Weight], stop: Event) -> Mapping[str, bytes]:
        """Train, in a ComfyUI of its own. Raises as `train_lora`, and WeightsError for the checkpoint."""
        weight = next(weight for weight in weights if weight.path == self._base_path)
        with closing(FileReader(tar, first=weight.offset or 0)) as reader:
            base = base_of(reader, weight)
        existing = self._continue_on(base.model)
        self._copy_out(tar, weight, stop)
        trained = run_until(stop, self._train(base, existing))
        self._record = {"path": self.members[-1], **trained.facts}
        made = {f"training/{name}": data for name, data in trained.papers.items()}
        return {**made, self.members[-1]: trained.data}

    async def _train(self, base: Base, existing: Existing | None) -> TrainedLora:
        order, place = self._order, self._workplace
        settings = replace(self._links.settings, models_dir=place.models, data_dir=place.folder)
        patience = Patience.of(order.limits)
        return await train_lora(
            order.dataset, base, order.parameters, settings, patience, self._report, existing, place.log
        )

    def _choose(self, found: Sequence[Found]) -> Found:
        checkpoints = [item for item in found if item.wanted.folder == "checkpoints"]
        names = [item.remote.name for item in checkpoints]
        if not checkpoints:
            raise TrainingInputError(
                "training_images needs a checkpoint to train on: put its link into checkpoints.",
                input_name="checkpoints",
            )
        wanted = self._order.base_checkpoint
        if wanted is not None and wanted not in names:
            raise TrainingInputError(
                f"base_checkpoint is {wanted[:300]!r}, and the checkpoints are called {', '.join(names)}.",
                input_name="base_checkpoint",
            )
        return checkpoints[names.index(wanted) if wanted is not None else 0]

    def _check_room(self, found: Sequence[Found], base: Found, model: BaseModel | None) -> None:
        """A copy of the checkpoint for ComfyUI, the LoRA, and the tar where it lies on the same disk."""
        folder, tar_folder = self._workplace.folder, self._workplace.tar.parent
        needed = (base.remote.size or 0) + HEADROOM_BYTES
        if model is not None:
            needed += LORA_COPIES * model.lora_bytes(self._order.parameters)
        if folder.stat().st_dev == tar_folder.stat().st_dev:
            needed += sum(item.remote.size or 0 for item in found)
        require_room(folder, needed, f"the training and its copy of {base.path}")

    def _fetch_existing(
        self, link: str, opener: HttpOpener, stop: Event
    ) -> tuple[Mapping[str, Tensor], Mapping[str, str], str]:
        """The tensors, metadata and SHA-256 of the LoRA to go on from."""
        remote = self._links.ask(link, "existing_lora", opener)
        check_size(remote.size, "existing_lora")
        weight = self._links.fetch(remote, "loras", link, self._workplace.models, opener, stop)
        data = (self._workplace.models / weight.path).read_bytes()
        return *read_tensors(data, weight.path), weight.sha256

    def _continue_on(self, model: BaseModel) -> Existing | None:
        if self._existing is None:
            return None
        tensors, metadata, sha256 = self._existing
        return Existing(existing_lora(tensors, metadata, model, "existing_lora"), sha256)

    def _copy_out(self, tar: Path, weight: Weight, stop: Event) -> None:
        """The checkpoint out of the tar into the models folder, proven once more on its way."""
        file = Needed.of(weight)
        with (
            staging(self._workplace.models, self._links.listener, stop) as (staged, fetch),
            closing(FileReader(tar, first=weight.offset or 0)) as reader,
        ):
            self._links.listener.begin("unpacking for the training", [(file.path, file.size)])
            try:
                failed = fetch.bring([file], FROM_THE_TAR, lambda _file: reader)
            finally:
                self._links.listener.end()
            if failed:
                raise given_up(failed)
            staged.commit(self._links.listener)
