"""One graph of ours in ComfyUI, to its end; whatever goes wrong becomes an error that says so."""

from __future__ import annotations

from dataclasses import dataclass

from comfyui.deadline import Deadline
from comfyui.engine.client import HistoryEntry, PromptRefusedError
from comfyui.engine.engine import Engine
from comfyui.engine.events import ExecutionFailed
from comfyui.engine.follow import Observer
from comfyui.errors import EngineError
from comfyui.run import Limits
from comfyui.training.graph import Prompt
from comfyui.workflow.failure import explain_failure
from comfyui.workflow.parse import workflow_of


@dataclass(frozen=True)
class Patience:
    """How long ComfyUI may take: until `deadline` in all, `stall_s` seconds (None: for ever) without a sign of life."""

    deadline: Deadline
    stall_s: float | None

    @classmethod
    def of(cls, limits: Limits) -> Patience:
        """Patience that begins now."""
        hint = "It was stopped. Give timeout a larger number, or 0 for none, or train fewer steps."
        return cls(Deadline(limits.total_s, "Training the LoRA", hint=hint), limits.stall_s)


async def run_graph(engine: Engine, prompt: Prompt, patience: Patience, observe: Observer) -> HistoryEntry:
    """Run the graph and return what ComfyUI remembers of it.

    Raises ExecutionError for a node that failed, DeadlineError, and EngineError for what nobody outside can help.
    """
    try:
        entry = await engine.run(prompt, deadline=patience.deadline, stall_s=patience.stall_s, observe=observe)
    except PromptRefusedError as refusal:
        # Every value in the graph was checked before: it is this ComfyUI that is not the one it was made for.
        raise EngineError(f"ComfyUI refuses the graph of the training: {str(refusal.answer)[:1000]}") from refusal
    if isinstance(entry.failure, ExecutionFailed):
        raise explain_failure(entry.failure, workflow_of(prompt))
    if not entry.succeeded:
        raise EngineError("ComfyUI was interrupted while it trained, and not by this training.")
    return entry
