"""Run one workflow in ComfyUI: followed, timed, explained where it fails, and run again where that helps and is safe.

A workflow that has been read and checked goes in; the files that its nodes report come out, still where ComfyUI wrote
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from comfyui.deadline import Deadline
from comfyui.engine.client import ComfyUIClient, HistoryEntry, PromptRefusedError
from comfyui.engine.engine import Engine
from comfyui.engine.events import Event, ExecutionFailed
from comfyui.engine.follow import LogLine
from comfyui.engine.progress import RunProgress
from comfyui.engine.server import engine_log_line
from comfyui.engine.timing import RunTimes
from comfyui.engine.vram import PeakVram
from comfyui.errors import ComfyUIModelError, EngineDiedError, EngineError, WorkflowError
from comfyui.outputs import Output, OutputFile, reported_files
from comfyui.workflow.changes import place_outputs
from comfyui.workflow.failure import Cause, cause_of, explain_failure
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import Workflow
from comfyui.workflow.refusal import explain_refusal
from comfyui.workflow.wording import node_name

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
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One workflow to be run, of node classes `classes`.

    `folder` is the folder below ComfyUI's output folder to save in, `input_names` what lies in its input folder,
    `places` which kinds of files are wanted ("output", "temp").
    """

    workflow: Workflow
    classes: NodeClasses
    folder: str
    input_names: Sequence[str]
    places: Sequence[str]
    limits: Limits


class _RunAgainError(Exception):
    """Running the workflow once more may help, and does no harm; `error` is what is raised if it did not."""

    def __init__(
        self, reason: str, error: ComfyUIModelError, *, free_memory: bool = False, anew: Collection[str] = ()
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.free_memory = free_memory
        self.anew = anew


async def run_workflow(engine: Engine, run: Run, say: Callable[[str], None]) -> RunResult:
    """Run the workflow; once more if ComfyUI ended before it had it, ran out of memory, or named files that are gone.

    Raises WorkflowError, ExecutionError, DeadlineError or an EngineError.
    """
    hint = "It was stopped. Give timeout a larger number, or 0 for none."
    deadline = Deadline(run.limits.total_s, "Running the workflow", hint=hint)
    anew: Collection[str] = ()
    tried: list[str] = []
    while True:
        try:
            return await _Attempt(engine, run, say).run(f"{run.folder}/{len(tried) + 1}", deadline, anew)
        except _RunAgainError as again:
            if again.reason in tried:
                raise again.error from None
            tried.append(again.reason)
            say(f"{again.reason[0].upper()}{again.reason[1:]}; running it once more.")
            anew = again.anew or anew
            if again.free_memory:
                await engine.ask(ComfyUIClient.free)


class _Attempt:
    """One time through the workflow."""

    def __init__(self, engine: Engine, run: Run, say: Callable[[str], None]) -> None:
        self._engine = engine
        self._run = run
        self._say = say
        self._times = RunTimes()
        self._progress = RunProgress({node.id: node.title for node in run.workflow.nodes.values()})
        self._vram = PeakVram()

    async def run(self, folder: str, deadline: Deadline, anew: Collection[str]) -> RunResult:
        """Raises _RunAgainError beside the errors of `run_workflow`."""
        workflow = self._run.workflow
        prompt = place_outputs(workflow, folder, anew).prompt()
        entry = await self._follow(prompt, deadline)
        if isinstance(entry.failure, ExecutionFailed):
            await self._raise_failure(entry.failure)
        if not entry.succeeded:
            raise EngineError("ComfyUI was interrupted while it ran the workflow, and not by this prediction.")
        found = reported_files(entry.outputs, workflow, self._engine.folders)
        files = [file for file in found if file.place in self._run.places]
        if not files:
            raise _nothing_made(found, workflow)
        self._check_all_there(files)
        return RunResult(files, self._metrics())

    async def _follow(self, prompt: dict[str, Any], deadline: Deadline) -> HistoryEntry:
        try:
            watching = nullcontext() if self._engine.on_cpu else self._vram.watch(await self._engine.client())
            async with watching:
                return await self._engine.run(
                    prompt, deadline=deadline, stall_s=self._run.limits.stall_s, observe=self._observe
                )
        except PromptRefusedError as refusal:
            classes = self._run.classes
            # The lists of files in them may be old. The refusal is the news, whatever becomes of this question.
            with suppress(EngineError):
                classes = NodeClasses(await self._engine.object_info(fresh=True))
            raise explain_refusal(refusal.answer, self._run.workflow, classes, self._run.input_names) from None
        except EngineDiedError as death:
            if not death.had_prompt:
                raise _RunAgainError("ComfyUI ended before it was given the workflow", death) from death
            raise self._named(death) from None

    def _observe(self, item: Event | LogLine) -> None:
        if isinstance(item, LogLine):
            if not PROGRESS_BAR.search(item.text):
                self._say(engine_log_line(item.text))
            return
        self._times.see(item)
        if line := self._progress.line(item):
            self._say(line)

    async def _raise_failure(self, failure: ExecutionFailed) -> None:
        error = explain_failure(failure, self._run.workflow)
        match cause_of(failure):
            case Cause.GPU_MEMORY | Cause.MEMORY:
                # It may have been another prediction's models that took the room.
                raise _RunAgainError("out of memory, so all models are unloaded", error, free_memory=True)
            case Cause.GPU_FAULT:
                # CUDA refuses everything in a process that has seen such an error.
                await self._engine.end("its GPU failed")
        raise error

    def _check_all_there(self, files: Sequence[Output]) -> None:
        """ComfyUI's cache may name files that went away with an earlier run: those of previews and some custom nodes.

        Nodes that take a filename_prefix never do that (see place_outputs).
        """
        gone = [file for file in files if isinstance(file, OutputFile) and not file.path.is_file()]
        if gone:
            names = ", ".join(file.path.name for file in gone)
            error = EngineError(f"ComfyUI reports the output file {names}, but wrote no such file.")
            anew = {file.node_id.split(".", 1)[0] for file in gone}
            raise _RunAgainError("some files were in ComfyUI's cache alone", error, anew=anew)

    def _named(self, death: EngineDiedError) -> EngineDiedError:
        """The error with the node that was at work; a sudden death swallows the word that the next one has begun."""
        node = self._run.workflow.nodes.get((self._progress.node_id or "").split(".", 1)[0])
        if node is None:
            return death
        name = node_name(node.id, node.class_type, self._run.workflow)
        return EngineDiedError(
            f"{name} was the last that was seen at work: {death}",
            returncode=death.returncode,
            last_lines=death.last_lines,
            had_prompt=death.had_prompt,
        )

    def _metrics(self) -> dict[str, Any]:
        times, nodes = self._times, self._run.workflow.nodes
        loaders = {node.id for node in nodes.values() if self._run.classes.loads_weights(node.class_type)}
        metrics = {
            "queue_seconds": round(times.queue_s, 3),
            "execution_seconds": round(times.execution_s, 3),
            "load_seconds": round(sum(seconds for node, seconds in times.node_s.items() if node in loaders), 3),
            "node_seconds": times.node_s,
        }
        return metrics if self._vram.bytes is None else metrics | {"peak_vram_bytes": self._vram.bytes}


def _nothing_made(files: Sequence[Output], workflow: Workflow) -> WorkflowError:
    """The error for a run without a file to give back: it says why there is none."""
    if files:
        nodes = ", ".join(sorted({f"{file.node_id} {workflow.title(file.node_id)!r}" for file in files}))
        return WorkflowError(
            f"The workflow ran, but made only temporary files (node {nodes}). Set return_temp_files to get them, or "
            "add a node that saves, such as SaveImage."
        )
    return WorkflowError("The workflow ran, but no node reported a file. Add a node that saves, such as SaveImage.")
