"""A node's exception tells what the machine lacks."""

from __future__ import annotations

import errno
import os

import pytest

from comfyui.engine.events import ExecutionFailed
from comfyui.workflow.failure import Cause, cause_of


@pytest.mark.parametrize(
    ("exception_type", "message", "cause"),
    [
        ("torch.OutOfMemoryError", "Allocation on device ", Cause.GPU_MEMORY),
        ("torch.AcceleratorError", "CUDA error: out of memory", Cause.GPU_MEMORY),
        ("RuntimeError", "MPS backend out of memory (MPS allocated: 9.00 GB)", Cause.GPU_MEMORY),
        ("MemoryError", "", Cause.MEMORY),
        ("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 8.00 GiB for an array", Cause.MEMORY),
        (
            "RuntimeError",
            "[alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory",
            Cause.MEMORY,
        ),
        ("OSError", str(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))), Cause.MEMORY),
        ("OSError", str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a.png")), Cause.DISK_FULL),
        ("OSError", str(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))), Cause.DISK_FULL),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered", Cause.GPU_FAULT),
        ("safetensors_rust.SafetensorError", "Error while deserializing header", Cause.DAMAGED_WEIGHTS),
        ("ValueError", "a picture of a disk, out of memory", Cause.OTHER),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (77x768 and 2048x320)", Cause.OTHER),
    ],
)
def test_cause(exception_type: str, message: str, cause: Cause) -> None:
    failure = ExecutionFailed(None, "5", "A", exception_type, message)
    assert cause_of(failure) is cause
