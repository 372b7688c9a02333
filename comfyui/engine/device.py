"""Does this machine have a GPU that torch can use? Answered without importing torch, which takes seconds."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from pathlib import Path

from comfyui.settings import Settings


def runs_on_cpu(settings: Settings) -> bool:
    """True if ComfyUI must be told `--cpu`: it dies at start where it expects a GPU and there is none."""
    if settings.device != "auto":
        return settings.device == "cpu"
    if sys.platform == "darwin":
        return False  # ComfyUI finds Metal, or the CPU, by itself there.
    return not (_torch_has_cuda() and _cuda_devices() > 0)


def _torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA or ROCm build: torch/version.py says so in plain text."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version_file = Path(spec.origin).with_name("version.py")
    return re.search(r"^(cuda|hip)\b[^=\n]*=\s*['\"]", version_file.read_text("utf-8"), re.MULTILINE) is not None


def _cuda_devices() -> int:
    """How many GPUs the NVIDIA driver offers (CUDA driver API: cuInit, cuDeviceGetCount); 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
