"""Which inputs of which node classes choose a file of a model folder, so that a link may stand in place of its name.

/object_info shows lists of names, not where they come from. So a marker, a file that nobody else has, is put into each
model folder for a moment: an input whose choices have the marker chooses from that folder, custom nodes included.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from comfyui.engine.client import ComfyUIClient
from comfyui.engine.engine import Engine
from comfyui.errors import StorageError

MARKED_EXTENSIONS = (".safetensors", ".sft", ".gguf")
"""Kinds of files that a link may bring; a folder that lists none of them is left alone."""
EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
"""A whole file without tensors: some custom nodes read the heads of all that they list."""


@dataclass(frozen=True)
class ModelFolder:
    """A kind of models: ComfyUI's name for it, where it lies below the models folder, and what it lists.

    `extensions` are in lower case, with their dot; none of them stands for all.
    """

    name: str
    path: str
    extensions: frozenset[str] = frozenset()

    @property
    def marked_extension(self) -> str | None:
        """The first kind of file that a link may bring and this folder lists."""
        return next((kind for kind in MARKED_EXTENSIONS if not self.extensions or kind in self.extensions), None)


@dataclass(frozen=True)
class ModelInputs:
    """The model folder of each input that has one, by class and name, and all folders by ComfyUI's name.

    A dynamic input's own inputs have names with a dot, as in a prompt: "mode.lora_name".
    """

    inputs: Mapping[str, Mapping[str, ModelFolder]] = field(default_factory=dict)
    folders: Mapping[str, ModelFolder] = field(default_factory=dict)

    def folder(self, class_type: str, input_name: str) -> ModelFolder | None:
        """Where the input chooses from, None where it is no model folder below ours."""
        return self.inputs.get(class_type, {}).get(input_name)


class ModelFolders:
    """Asks one engine, once for each ComfyUI that is started.

    The markers lie in folders whose names begin with `probe`, below `models_dir`.
    """

    def __init__(self, engine: Engine, models_dir: Path, probe: str) -> None:
        self._engine = engine
        self._models_dir = models_dir
        self._probe = probe
        self._asking: asyncio.Task[ModelInputs] | None = None
        self._known: tuple[int | None, ModelInputs] | None = None

    async def inputs(self) -> ModelInputs:
        """Which inputs choose from which folder. Raises an EngineError, or StorageError where no file can be put."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._engine.ask(self._look))
        # A prediction that is cancelled meanwhile does not leave the markers behind.
        return await asyncio.shield(self._asking)

    async def _look(self, client: ComfyUIClient) -> ModelInputs:
        pid = self._engine.pid
        if self._known is not None and self._known[0] == pid:
            return self._known[1]
        folders = folders_below(self._models_dir, await client.model_folders())
        probe = f"{self._probe}-{os.getpid()}-{uuid.uuid4().hex}"
        await asyncio.to_thread(self._sweep, folders)
        try:
            markers = await asyncio.to_thread(self._mark, folders, probe)
            object_info = await client.object_info()
        finally:
            await asyncio.to_thread(self._unmark, folders, probe)
        inputs = ModelInputs(marked_inputs(object_info, markers), {folder.name: folder for folder in folders})
        self._known = (pid, inputs)
        return inputs

    def _mark(self, folders: Sequence[ModelFolder], probe: str) -> dict[str, ModelFolder]:
        """Put a marker into each folder; returns whose it is, by its name in a list."""
        markers = {}
        for number, folder in enumerate(folders):
            name = f"{number}{folder.marked_extension}"
            place = self._models_dir / folder.path / probe
            try:
                place.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(EMPTY_SAFETENSORS)
            except OSError as error:
                raise StorageError(
                    f"The model folder {place.parent} takes no files ({error.strerror}), so weights cannot come by "
                    "link here. Make MODELS_DIR writable, or bake the weights in a training.",
                    path=str(place.parent),
                    expected="a folder that can be written to",
                    seen=error.strerror,
                ) from error
            markers[f"{probe}{os.sep}{name}"] = folder
        return markers

    def _unmark(self, folders: Sequence[ModelFolder], probe: str) -> None:
        for folder in folders:
            shutil.rmtree(self._models_dir / folder.path / probe, ignore_errors=True)

    def _sweep(self, folders: Sequence[ModelFolder]) -> None:
        """Remove the markers of processes that were killed while they asked."""
        for folder in folders:
            for left in (self._models_dir / folder.path).glob(f"{self._probe}-*-*"):
                owner = left.name.removeprefix(f"{self._probe}-").split("-")[0]
                if owner == str(os.getpid()) or not (owner.isdigit() and psutil.pid_exists(int(owner))):
                    shutil.rmtree(left, ignore_errors=True)


def folders_below(models_dir: Path, answer: Sequence[Mapping[str, Any]]) -> list[ModelFolder]:
    """The folders of /experiment/models (app/model_manager.py) that lie below `models_dir` and list weights. Pure.

    One that ComfyUI looks for in several places is the place of its own name, else the first.
    """
    found = []
    for entry in answer:
        places = [Path(place) for place in entry["folders"]]
        below = [place.relative_to(models_dir) for place in places if _is_below(place, models_dir)]
        named = [place for place in below if place.name == entry["name"]]
        if below:
            kinds = frozenset(str(kind).lower() for kind in entry["extensions"])
            found.append(ModelFolder(entry["name"], (named or below)[0].as_posix(), kinds))
    return [folder for folder in found if folder.marked_extension]


def marked_inputs(
    object_info: Mapping[str, Any], markers: Mapping[str, ModelFolder]
) -> dict[str, dict[str, ModelFolder]]:
    """The folder of each input whose choices have a marker, by class and input. Pure."""
    found: dict[str, dict[str, ModelFolder]] = {}
    for class_type, info in object_info.items():
        groups = info.get("input") if isinstance(info, Mapping) else None
        for name, config in _inputs(groups):
            choices = _choices(config)
            # An input that chooses from two folders gets the first one, as a loader looks in its first one first.
            if folder := next((folder for marker, folder in markers.items() if marker in choices), None):
                found.setdefault(class_type, {}).setdefault(name, folder)
    return found


def _choices(config: Any) -> frozenset[str]:
    """The names that an input lets choose from: [[names…], options], or ["COMBO", {"options": [names…]}]."""
    names = config[0] if isinstance(config, list | tuple) and config else None
    if names == "COMBO" and len(config) > 1 and isinstance(config[1], Mapping):
        names = config[1].get("options")
    return (
        frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list | tuple) else frozenset()
    )


def _inputs(groups: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All inputs with their [type, options], those inside dynamic ones too (comfy_api/latest/_io.py, DynamicInput)."""
    for group in ("required", "optional"):
        inputs = groups.get(group) if isinstance(groups, Mapping) else None
        for name, config in inputs.items() if isinstance(inputs, Mapping) else ():
            yield f"{prefix}{name}", config
            options = config[1] if isinstance(config, list | tuple) and len(config) > 1 else None
            if isinstance(options, Mapping):
                yield from _inner(options, f"{prefix}{name}.")


def _inner(options: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for choice in options.get("options") or ():
        if isinstance(choice, Mapping):
            yield from _inputs(choice.get("inputs"), prefix)
    template = options.get("template")
    if isinstance(template, Mapping):
        numbered = [f"{template.get('prefix')}{number}" for number in range(int(template.get("max") or 0))]
        for _, config in _inputs(template.get("input")):
            for name in template.get("names") or numbered:
                yield f"{prefix}{name}", config


def _is_below(place: Path, models_dir: Path) -> bool:
    return place.is_relative_to(models_dir) and place != models_dir
