"""One prediction, from what a person sent to the files they get back.

    workflow_json → parse → seeds → input files → engine.run → reported files → delivered files

The rooms do the work; this module is the order of it, and the clean-up after it.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui.engine.engine import Engine
from comfyui.errors import RequestError, WorkflowError
from comfyui.outputs import OutputFile, deliver
from comfyui.png import remove_from_texts
from comfyui.run import Limits, run_workflow
from comfyui.scratch import new_output_folder
from comfyui.settings import Settings
from comfyui.workflow.changes import randomise_seeds
from comfyui.workflow.check import check, is_certain
from comfyui.workflow.convert import convert, is_ui_format
from comfyui.workflow.fetch import fetch_media, fetch_workflow, is_reference
from comfyui.workflow.media import clear_folder, place_input_file
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import Workflow, read_json, workflow_of
from comfyui.workflow.wording import refuse

OUTPUT_FORMATS = ("webp", "jpg", "png")


@dataclass(frozen=True)
class PredictionRequest:
    """The inputs of one prediction, by the names that users of Cog see.

    `output_quality` is 0 to 100; `timeout` and `stall_timeout` are seconds, 0 for none.
    """

    workflow_json: str
    input_file: Path | None = None
    return_temp_files: bool = False
    output_format: str = "webp"
    output_quality: int = 95
    randomise_seeds: bool = True
    force_reset_cache: bool = False
    timeout: float = 1800
    stall_timeout: float = 600

    def __post_init__(self) -> None:
        # Cog validates inputs only where its built schema is; without Docker it is not.
        if self.output_format not in OUTPUT_FORMATS:
            raise RequestError(f"output_format is {self.output_format!r}; it is one of {', '.join(OUTPUT_FORMATS)}.")
        if not 0 <= self.output_quality <= 100:
            raise RequestError(f"output_quality is {self.output_quality}; it is a number from 0 to 100.")
        for name in ("timeout", "stall_timeout"):
            if not getattr(self, name) >= 0:
                raise RequestError(f"{name} is {getattr(self, name)}; it is a number of seconds, or 0 for no limit.")


@dataclass(frozen=True)
class Prediction:
    """The files of a prediction, in the order of the workflow's nodes, and its metrics by name."""

    files: list[Path]
    metrics: Mapping[str, Any]


async def predict(
    engine: Engine, settings: Settings, request: PredictionRequest, say: Callable[[str], None]
) -> Prediction:
    """Run one workflow; its files lie in a fresh temporary folder afterwards.

    `say` takes the lines for the person who waits. Raises the errors of comfyui.errors, each fit to be shown.
    """
    workflow = await _read_workflow(request.workflow_json, engine, settings)
    if request.randomise_seeds:
        workflow, seeds = randomise_seeds(workflow, random.SystemRandom())
        for seed in seeds:
            say(f"Seed: node {seed.node_id} {seed.title!r} {seed.input_name} = {seed.value}")
    if request.force_reset_cache:
        await (await engine.client()).free()
    classes = NodeClasses(await engine.object_info(fresh=False))
    problems = check(workflow, classes)
    if any(is_certain(found) for found in problems):
        # Now that it is refused, the lists of files are worth asking for again.
        raise refuse(check(workflow, NodeClasses(await engine.object_info(fresh=True))))
    run_folder = f"run-{uuid.uuid4().hex[:12]}"
    await asyncio.to_thread(clear_folder, engine.folders.input)
    try:
        input_names = []
        if request.input_file is not None:
            input_names = await asyncio.to_thread(place_input_file, request.input_file, engine.folders.input)
            say(f"Input files: {', '.join(input_names)}")
        workflow = await fetch_media(
            workflow, classes, engine.folders.input, allow_private=settings.allow_private_urls, say=say
        )
        places = ("output", "temp") if request.return_temp_files else ("output",)
        limits = Limits(request.timeout or None, request.stall_timeout or None)
        result = await run_workflow(
            engine, workflow, run_folder, input_names=input_names, places=places, limits=limits, say=say
        )
        start = time.monotonic()
        out_dir = new_output_folder(settings.data_dir / "outputs")
        files = await asyncio.to_thread(deliver, result.files, out_dir, request.output_format, request.output_quality)
        await asyncio.to_thread(_hide_run_folder, files, run_folder)
        for file in result.files:
            # What a custom node writes without a filename_prefix lies outside the run's folder.
            if isinstance(file, OutputFile):
                file.path.unlink(missing_ok=True)
        return Prediction(files, {**result.metrics, "output_seconds": round(time.monotonic() - start, 3)})
    finally:
        await asyncio.to_thread(shutil.rmtree, engine.folders.output / run_folder, ignore_errors=True)


async def _read_workflow(text: str, engine: Engine, settings: Settings) -> Workflow:
    """The workflow, from its text or from where a URL or data: URI leads; the UI format becomes the API format."""
    if is_reference(text.strip()):
        text = await fetch_workflow(text.strip(), allow_private=settings.allow_private_urls)
    value = read_json(text)
    if is_ui_format(value):
        object_info = await engine.object_info(fresh=False)
        # Seconds for a graph of thousands of nodes, in which other predictions go on.
        value = await asyncio.to_thread(convert, value, object_info)
        if not value:
            raise WorkflowError("Nothing in this workflow runs: all its nodes are notes, muted or bypassed.")
    return workflow_of(value)


def _hide_run_folder(files: Sequence[Path], run_folder: str) -> None:
    """Give the workflow inside each PNG its own filename_prefix back: people load such pictures into ComfyUI."""
    ours = re.compile(re.escape(run_folder).encode() + rb"/\d+/\d+/")
    for file in files:
        if file.suffix == ".png":
            file.write_bytes(remove_from_texts(file.read_bytes(), ours))
