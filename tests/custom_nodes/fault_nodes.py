"""Custom nodes for the tests: each does, inside the real ComfyUI, what a bad one does to its users."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import folder_paths  # type: ignore[import-not-found]
import torch
from server import PromptServer  # type: ignore[import-not-found]


def _fail(how: str) -> None:
    match how:
        case "exit":
            sys.exit(3)
        case "os_exit":
            os._exit(4)
        case "abort":
            os.abort()
        case "orphan":
            # The child has copies of all that ComfyUI has open: its output, and its connections.
            if os.fork() == 0:
                time.sleep(600)
            os._exit(4)
        case "stuck":
            # What works prompts off never takes another one.
            PromptServer.instance.prompt_queue.get = lambda timeout=None: time.sleep(600)
        case "gpu_memory":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        case "memory":
            raise MemoryError("Unable to allocate 900 GiB")
        case "gpu_fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "disk_full":
            with Path("/dev/full").open("wb") as full:
                full.write(b"0" * 100_000)


class Fault:
    """Passes an image on, after a fault. `times` is how often it happens: a file `counter` counts."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "how": ("STRING", {"default": ""}),
                "times": ("INT", {"default": 1_000_000}),
                "counter": ("STRING", {"default": ""}),
            }
        }

    def run(self, image: Any, how: str, times: int, counter: str) -> tuple[Any]:
        """Fail, unless it was often enough."""
        done = len(Path(counter).read_bytes()) if counter and Path(counter).exists() else 0
        if done < times:
            if counter:
                Path(counter).write_bytes(b"." * (done + 1))
            _fail(how)
        return (image,)


class Wait:
    """Passes an image on after some seconds, asking ComfyUI all the while whether it is to stop."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0}), "mark": ("STRING", {})}}

    def run(self, image: Any, seconds: float, mark: str) -> tuple[Any]:
        """`mark` only makes two such nodes different, so that none is answered from the cache."""
        import comfy.model_management as management  # type: ignore[import-not-found]

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return (image,)


class Peek:
    """Reports the names in ComfyUI's input, output and temp folders, and leaves a file of its own in each."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "mark": ("STRING", {})}}

    def run(self, image: Any, mark: str) -> dict[str, Any]:
        """One name on each line, from all three folders."""
        folders = [folder_paths.get_input_directory(), folder_paths.get_output_directory()]
        folders.append(folder_paths.get_temp_directory())
        names = sorted(path.name for folder in folders for path in Path(folder).rglob("*") if path.is_file())
        for folder in folders:
            (Path(folder) / f"left-by-{mark}.txt").write_text(mark)
        return {"ui": {"text": ["\n".join(names)]}}


NODE_CLASS_MAPPINGS = {"TestFault": Fault, "TestWait": Wait, "TestPeek": Peek}
