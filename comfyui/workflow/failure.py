"""A node's failure, in words for the person who sent the workflow, and what can be done about it. Pure.

Format: ComfyUI's `execution_error` message (execution.py of 0.30.0, handle_execution_error).
"""

from __future__ import annotations

import enum
import re

from comfyui.engine.events import ExecutionFailed
from comfyui.errors import ExecutionError, NodeProblem
from comfyui.workflow.parse import Workflow
from comfyui.workflow.wording import node_name


class Cause(enum.Enum):
    """Why a node failed, where its exception tells; the value is what to do about it."""

    GPU_MEMORY = "The GPU has too little memory for this: use a smaller size or batch, or a larger GPU."
    MEMORY = "The machine has too little memory (RAM) for this: use a smaller size or batch, or a larger machine."
    DISK_FULL = "The machine's disk is full: make fewer or smaller files, or use a machine with a larger disk."
    GPU_FAULT = "The GPU itself failed, and ComfyUI is started again for the next prediction: send this one again."
    DAMAGED_WEIGHTS = "The weights file it loads is cut short or damaged on disk: bake it again from a complete source."
    OTHER = ""


_SIGNS = (
    (Cause.DAMAGED_WEIGHTS, re.compile(r"SafetensorError")),
    # torch.OutOfMemoryError, and what drivers and ComfyUI's own allocator say (comfy/model_management.py, is_oom).
    (
        Cause.GPU_MEMORY,
        re.compile(r"\bOutOfMemoryError|(CUDA|HIP|MPS|XPU|device)\b.*out of memory|Allocation on device"),
    ),
    # Python's and numpy's, torch's CPU allocator, and ENOMEM.
    (Cause.MEMORY, re.compile(r"MemoryError|DefaultCPUAllocator|Cannot allocate memory|\[Errno 12\]")),
    # ENOSPC and EDQUOT.
    (Cause.DISK_FULL, re.compile(r"\[Errno (28|122)\]|No space left on device|Disk quota exceeded")),
    (Cause.GPU_FAULT, re.compile(r"AcceleratorError|(CUDA|HIP) error")),
)


def cause_of(failure: ExecutionFailed) -> Cause:
    """What made the node fail, as far as its exception tells."""
    said = f"{failure.exception_type}: {failure.exception_message}"
    return next((cause for cause, sign in _SIGNS if sign.search(said)), Cause.OTHER)


def explain_failure(failure: ExecutionFailed, workflow: Workflow) -> ExecutionError:
    """The error for a node that raised while the workflow ran: which node, which exception, and what to do."""
    hint = cause_of(failure).value
    said = f"{failure.exception_type.rsplit('.', 1)[-1]}: {failure.exception_message}".strip().rstrip(".")
    text = f"{node_name(failure.node_id, failure.class_type, workflow)} failed: {said}.{' ' + hint if hint else ''}"
    problem = NodeProblem(
        failure.node_id, workflow.title(failure.node_id), failure.class_type, None, failure.exception_type, text
    )
    return ExecutionError(text, problem=problem, traceback=failure.traceback)
