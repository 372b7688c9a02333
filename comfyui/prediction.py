"""One prediction, from what a person sent to the files they get back.

    workflow_json → parse → seeds → check → files by link → its turn: run → reported files → delivered files

The rooms do the work; this module is the order of it, and the clean-up after it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from comfyui.deadline import Deadline
from comfyui.engine.client import ComfyUIClient
from comfyui.engine.engine import Engine
from comfyui.engine.server import EngineFolders
from comfyui.engine.turn import OwnFolders
from comfyui.errors import NodeProblem, RequestError, WorkflowError
from comfyui.images import ImageOptions
from comfyui.outputs import Output, OutputFile, deliver
from comfyui.run import Limits, Run, run_workflow
from comfyui.scratch import new_output_folder
from comfyui.settings import Settings
from comfyui.threads import in_thread
from comfyui.weights.disk import room_errors
from comfyui.weights.sources import NO_TOKENS, Tokens
from comfyui.workflow.changes import randomise_seeds
from comfyui.workflow.check import check, is_certain
from comfyui.workflow.convert import convert, is_ui_format
from comfyui.workflow.fetch import fetch_media, fetch_workflow, is_reference
from comfyui.workflow.media import place_input_file
from comfyui.workflow.model_links import FoundLinks, ModelLinks
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import Workflow, read_json, workflow_of
from comfyui.workflow.wording import refuse

OUTPUT_FORMATS = ("webp", "jpg", "png")
OUTPUTS_KEPT_S = 900.0
"""How long delivered files stay on disk: Cog uploads them, and a busy machine makes many."""


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
    embed_workflow: bool = True
    randomise_seeds: bool = True
    force_reset_cache: bool = False
    timeout: float = 1800
    stall_timeout: float = 600
    tokens: Tokens = NO_TOKENS

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
    engine: Engine, settings: Settings, links: ModelLinks, request: PredictionRequest, say: Callable[[str], None]
) -> Prediction:
    """Run one workflow; its files lie in a fresh temporary folder afterwards.

    Several may be in flight: ComfyUI runs one at a time, while the others read, fetch and convert their files.
    `say` takes the lines for the person who waits. Raises the errors of comfyui.errors, each fit to be shown.
    """
    watch = _Stopwatch()
    workflow = await _read_workflow(request.workflow_json, engine, settings)
    if request.randomise_seeds:
        workflow, seeds = randomise_seeds(workflow, random.SystemRandom())
        for seed in seeds:
            say(f"Seed: node {seed.node_id} {seed.title!r} {seed.input_name} = {seed.value}")
    classes = NodeClasses(await engine.object_info(fresh=False))
    found = await links.find(workflow)
    if _refused(workflow, classes, found):
        # The lists of files may be older than the files.
        classes = NodeClasses(await engine.object_info(fresh=True))
        if problems := _refused(workflow, classes, found):
            raise refuse(problems)
    hint = "Give timeout a larger number, or 0 for none."
    fetch_limit = Deadline(request.timeout or None, "Fetching the files that the workflow names by link", hint=hint)
    with room_errors(settings.data_dir, "the files of this prediction", "more bytes"):
        async with (
            engine.own_folders() as own,
            links.bring(found, request.tokens, say=say, deadline=fetch_limit) as workflow,
        ):
            input_names: list[str] = []
            if (file := request.input_file) is not None:
                input_names = await in_thread(lambda stop: place_input_file(file, own.input, stop))
                say(f"Input files: {', '.join(input_names)}")
            workflow = await fetch_media(
                workflow, classes, own.input, allow_private=settings.allow_private_urls, say=say, deadline=fetch_limit
            )
            watch.lap("input_seconds")
            if engine.taken():
                say("ComfyUI is busy with another prediction; waiting for its end.")
            run_folder = f"run-{uuid.uuid4().hex[:12]}"
            places = ("output", "temp") if request.return_temp_files else ("output",)
            limits = Limits(request.timeout or None, request.stall_timeout or None)
            async with engine.turn(own):
                watch.lap("wait_seconds")
                if request.force_reset_cache:
                    await engine.ask(ComfyUIClient.free)
                run = Run(workflow, classes, run_folder, input_names, places, limits)
                result = await run_workflow(engine, run, say)
            watch.lap("run_seconds")
            options = ImageOptions(request.output_format, request.output_quality, request.embed_workflow, run_folder)
            outputs = [_after_turn(output, own, engine.folders) for output in result.files]
            files = await in_thread(lambda stop: _deliver(outputs, settings.data_dir / "outputs", options, stop))
            watch.lap("output_seconds")
    return Prediction(files, {**result.metrics, **watch.laps})


class _Stopwatch:
    """Seconds between the steps of a prediction, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        """The step `name` ends now."""
        now = time.monotonic()
        self.laps[name], self._since = round(now - self._since, 3), now


def _refused(workflow: Workflow, classes: NodeClasses, found: FoundLinks) -> list[NodeProblem]:
    """All problems of a workflow that ComfyUI is sure to refuse; none of one that it may run."""
    problems = [problem for problem in check(workflow, classes) if not found.covers(problem)]
    return problems if any(is_certain(problem, classes) for problem in problems) else []


def _deliver(outputs: Sequence[Output], parent: Path, options: ImageOptions, stop: Event) -> list[Path]:
    folder = new_output_folder(parent, OUTPUTS_KEPT_S)
    try:
        return deliver(outputs, folder, options, stop)
    except BaseException:
        # Nobody gets them, and it may be the disk that was full.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _after_turn(output: Output, own: OwnFolders, folders: EngineFolders) -> Output:
    if isinstance(output, OutputFile):
        return dataclasses.replace(output, path=own.after_turn(output.path, folders))
    return output


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
