"""One prediction, from what a person sent to the files they get back.

    workflow_json → parse → seeds → input files → engine.run → reported files → delivered files

The rooms do the work; this module is the order of it, and the clean-up after it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyui.deadline import Deadline
from comfyui.engine.client import PromptRefusedError
from comfyui.engine.engine import Engine, LogLine
from comfyui.engine.events import Event, Executing, ExecutionFailed
from comfyui.engine.server import engine_log_line
from comfyui.errors import EngineError, RequestError, WorkflowError
from comfyui.outputs import OutputFile, deliver, reported_files
from comfyui.png import replace_in_texts
from comfyui.scratch import new_output_folder
from comfyui.settings import Settings
from comfyui.workflow.changes import place_outputs, randomise_seeds
from comfyui.workflow.media import clear_folder, place_input_file
from comfyui.workflow.parse import Workflow, parse_workflow
from comfyui.workflow.refusal import explain_failure, explain_refusal

OUTPUT_FORMATS = ("webp", "jpg", "png")
ATTEMPTS = ("1", "2")


@dataclass(frozen=True)
class PredictionRequest:
    """The inputs of one prediction, by the names that users of Cog see. `output_quality` is 0 to 100."""

    workflow_json: str
    input_file: Path | None = None
    return_temp_files: bool = False
    output_format: str = "webp"
    output_quality: int = 95
    randomise_seeds: bool = True
    force_reset_cache: bool = False

    def __post_init__(self) -> None:
        # Cog validates inputs only where its built schema is; without Docker it is not.
        if self.output_format not in OUTPUT_FORMATS:
            raise RequestError(f"output_format is {self.output_format!r}; it is one of {', '.join(OUTPUT_FORMATS)}.")
        if not 0 <= self.output_quality <= 100:
            raise RequestError(f"output_quality is {self.output_quality}; it is a number from 0 to 100.")


async def predict(
    engine: Engine, settings: Settings, request: PredictionRequest, say: Callable[[str], None]
) -> list[Path]:
    """Run one workflow and return its files, in the order of its nodes, in a fresh temporary folder.

    `say` takes the lines for the person who waits. Raises the errors of comfyui.errors, each fit to be shown.
    """
    workflow = parse_workflow(request.workflow_json)
    if request.randomise_seeds:
        workflow, seeds = randomise_seeds(workflow, random.SystemRandom())
        for seed in seeds:
            say(f"Seed: node {seed.node_id} {seed.title!r} {seed.input_name} = {seed.value}")
    client = await engine.client()
    if request.force_reset_cache:
        await client.free()
    run_folder = f"run-{uuid.uuid4().hex[:12]}"
    await asyncio.to_thread(clear_folder, engine.folders.input)
    try:
        input_names = []
        if request.input_file is not None:
            input_names = await asyncio.to_thread(place_input_file, request.input_file, engine.folders.input)
            say(f"Input files: {', '.join(input_names)}")
        places = ("output", "temp") if request.return_temp_files else ("output",)
        files = await _run(engine, settings, workflow, run_folder, input_names, places, say)
        out_dir = new_output_folder(settings.data_dir / "outputs")
        delivered = await asyncio.to_thread(deliver, files, out_dir, request.output_format, request.output_quality)
        await asyncio.to_thread(_hide_run_folder, delivered, run_folder)
        for file in files:
            # What a custom node writes without a filename_prefix lies outside the run's folder.
            file.path.unlink(missing_ok=True)
        return delivered
    finally:
        await asyncio.to_thread(shutil.rmtree, engine.folders.output / run_folder, ignore_errors=True)


def _hide_run_folder(files: Sequence[Path], run_folder: str) -> None:
    """Give the workflow inside each PNG its own filename_prefix back: people load such pictures into ComfyUI."""
    for file in files:
        if file.suffix == ".png":
            png = file.read_bytes()
            for attempt in ATTEMPTS:
                png = replace_in_texts(png, f"{run_folder}/{attempt}/".encode(), b"")
            file.write_bytes(png)


async def _run(
    engine: Engine,
    settings: Settings,
    workflow: Workflow,
    run_folder: str,
    input_names: list[str],
    places: Sequence[str],
    say: Callable[[str], None],
) -> list[OutputFile]:
    """Run the workflow; once more from an empty cache if ComfyUI answers from it with files that are gone.

    Saving nodes that take a filename_prefix never do that (see place_outputs); previews and some custom nodes do.
    """
    deadline = Deadline(
        settings.prediction_timeout_s, "Running the workflow", hint="PREDICTION_TIMEOUT_S gives it longer."
    )
    for attempt in ATTEMPTS:
        placed = place_outputs(workflow, f"{run_folder}/{attempt}")
        files = _wanted(await _run_once(engine, deadline, placed, input_names, say), workflow, places)
        missing = ", ".join(file.path.name for file in files if not file.path.is_file())
        if not missing:
            return files
        if attempt == ATTEMPTS[0]:
            say(f"ComfyUI's cache names {missing}, which went away with an earlier run; running without the cache.")
            await (await engine.client()).free()
    raise EngineError(f"ComfyUI reports the output file {missing}, but wrote no such file.")


async def _run_once(
    engine: Engine, deadline: Deadline, workflow: Workflow, input_names: list[str], say: Callable[[str], None]
) -> list[OutputFile]:
    """One run; its failure, if a node failed, is raised with the node's name."""

    def observe(item: Event | LogLine) -> None:
        match item:
            case LogLine(text):
                say(engine_log_line(text))
            case Executing(node_id=str(node_id)):
                say(f"Node {node_id} {workflow.title(node_id)!r}")
            case _:
                return

    try:
        entry = await engine.run(workflow.prompt(), deadline=deadline, observe=observe)
    except PromptRefusedError as refusal:
        object_info = await (await engine.client()).object_info()
        raise explain_refusal(refusal.answer, workflow, object_info, input_names) from None
    if isinstance(entry.failure, ExecutionFailed):
        raise explain_failure(entry.failure, workflow)
    if not entry.succeeded:
        raise EngineError("ComfyUI was interrupted while it ran the workflow, and not by this prediction.")
    return reported_files(entry.outputs, workflow, engine.folders)


def _wanted(files: Sequence[OutputFile], workflow: Workflow, places: Sequence[str]) -> list[OutputFile]:
    """The files to give back; no file at all is an error that says why."""
    wanted = [file for file in files if file.place in places]
    if wanted:
        return wanted
    if files:
        nodes = ", ".join(sorted({f"{file.node_id} {workflow.title(file.node_id)!r}" for file in files}))
        raise WorkflowError(
            f"The workflow ran, but made only temporary files (node {nodes}). Set return_temp_files to get them, or "
            "add a node that saves, such as SaveImage."
        )
    raise WorkflowError("The workflow ran, but no node reported a file. Add a node that saves, such as SaveImage.")
