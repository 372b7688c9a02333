"""Run one workflow in ComfyUI: followed, timed, explained where it fails, and run again where the cache deceives.

A workflow that has been read and checked goes in; the files that its nodes report come out, still where ComfyUI wrote
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfyui.deadline import Deadline
from comfyui.engine.client import PromptRefusedError
from comfyui.engine.engine import Engine, LogLine
from comfyui.engine.events import Event, ExecutionFailed
from comfyui.engine.progress import RunProgress
from comfyui.engine.server import engine_log_line
from comfyui.engine.timing import RunTimes
from comfyui.errors import EngineError, WorkflowError
from comfyui.outputs import Output, OutputFile, reported_files
from comfyui.workflow.changes import place_outputs
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import Workflow
from comfyui.workflow.refusal import explain_failure, explain_refusal

ATTEMPTS = ("1", "2")
"""Each attempt has a folder of its own below the run's."""
PROGRESS_BAR = re.compile(r"\d+%\|.*\|")
"""ComfyUI draws bars of its own, for one node each; the lines of RunProgress say more."""


@dataclass(frozen=True)
class Limits:
    """How long a run may take in all, and without any sign of life, in seconds; None is for ever."""

    total_s: float | None
    stall_s: float | None


@dataclass(frozen=True)
class RunResult:
    """The files and texts of a run, in the order of the workflow's nodes, and where its seconds went."""

    files: Sequence[Output]
    metrics: Mapping[str, Any]


async def run_workflow(
    engine: Engine,
    workflow: Workflow,
    run_folder: str,
    *,
    input_names: Sequence[str],
    places: Sequence[str],
    limits: Limits,
    say: Callable[[str], None],
) -> RunResult:
    """Run the workflow; once more from an empty cache if ComfyUI answers from it with files that are gone.

    Saving nodes that take a filename_prefix never do that (see place_outputs); previews and some custom nodes do.
    `run_folder` is the folder below ComfyUI's output folder to save in, `input_names` what lies in its input folder,
    `places` which kinds of files are wanted ("output", "temp"). Raises WorkflowError, ExecutionError, DeadlineError or
    an EngineError.
    """
    hint = "It was stopped. Give timeout a larger number, or 0 for none."
    deadline = Deadline(limits.total_s, "Running the workflow", hint=hint)
    for attempt in ATTEMPTS:
        placed = place_outputs(workflow, f"{run_folder}/{attempt}")
        times = RunTimes()
        found = await _run_once(engine, placed, deadline, limits.stall_s, times, input_names, say)
        files = [file for file in found if file.place in places]
        # Previews that nobody asked for would fill the disk of a warm machine.
        _remove(file for file in found if file.place not in places)
        if not files:
            raise _nothing_made(found, workflow)
        written = [file.path for file in files if isinstance(file, OutputFile)]
        missing = ", ".join(path.name for path in written if not path.is_file())
        if not missing:
            metrics = {"queue_seconds": round(times.queue_s, 3), "execution_seconds": round(times.execution_s, 3)}
            return RunResult(files, {**metrics, "node_seconds": times.node_s})
        if attempt == ATTEMPTS[0]:
            say(f"ComfyUI's cache names {missing}, which went away with an earlier run; running without the cache.")
            await (await engine.client()).free()
    raise EngineError(f"ComfyUI reports the output file {missing}, but wrote no such file.")


async def _run_once(
    engine: Engine,
    workflow: Workflow,
    deadline: Deadline,
    stall_s: float | None,
    times: RunTimes,
    input_names: Sequence[str],
    say: Callable[[str], None],
) -> list[Output]:
    """One run; its failure, if a node failed, is raised with the node's name."""
    progress = RunProgress({node.id: node.title for node in workflow.nodes.values()})

    def observe(item: Event | LogLine) -> None:
        if isinstance(item, LogLine):
            if not PROGRESS_BAR.search(item.text):
                say(engine_log_line(item.text))
            return
        times.see(item)
        if line := progress.line(item):
            say(line)

    try:
        entry = await engine.run(workflow.prompt(), deadline=deadline, stall_s=stall_s, observe=observe)
    except PromptRefusedError as refusal:
        classes = NodeClasses(await engine.object_info(fresh=True))
        raise explain_refusal(refusal.answer, workflow, classes, input_names) from None
    if isinstance(entry.failure, ExecutionFailed):
        raise explain_failure(entry.failure, workflow)
    if not entry.succeeded:
        raise EngineError("ComfyUI was interrupted while it ran the workflow, and not by this prediction.")
    return reported_files(entry.outputs, workflow, engine.folders)


def _remove(files: Iterable[Output]) -> None:
    for file in files:
        if isinstance(file, OutputFile):
            file.path.unlink(missing_ok=True)


def _nothing_made(files: Sequence[Output], workflow: Workflow) -> WorkflowError:
    """The error for a run without a file to give back: it says why there is none."""
    if files:
        nodes = ", ".join(sorted({f"{file.node_id} {workflow.title(file.node_id)!r}" for file in files}))
        return WorkflowError(
            f"The workflow ran, but made only temporary files (node {nodes}). Set return_temp_files to get them, or "
            "add a node that saves, such as SaveImage."
        )
    return WorkflowError("The workflow ran, but no node reported a file. Add a node that saves, such as SaveImage.")
