"""Paths, limits and time-outs, read from the environment once.

Nothing else in the project reads os.environ for its settings: what needs one takes a Settings.
docs/architecture.md has the table of the variables.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from comfyui.errors import RequestError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """What the environment decides. Paths are absolute; times are seconds."""

    upstream_dir: Path
    """ComfyUI's source tree (COMFYUI_DIR; default comfyui/upstream, which scripts/fetch-comfyui fills)."""
    models_dir: Path
    """ComfyUI's models folder (MODELS_DIR; default models/)."""
    data_dir: Path
    """What scripts make and may be deleted at any time: runs, demo weights, baked tars (DATA_DIR; default .data/)."""
    device: str
    """"auto", "cpu" or "gpu" (COMFYUI_DEVICE)."""
    engine_args: tuple[str, ...]
    """More arguments for ComfyUI's main.py (COMFYUI_ARGS, split as a shell does), for example --lowvram."""
    engine_start_timeout_s: float
    """How long ComfyUI may take to answer its first request (ENGINE_START_TIMEOUT_S; default 300)."""
    allow_private_urls: bool
    """Fetch from loopback, link-local and private addresses too (ALLOW_PRIVATE_URLS=1)."""
    hf_endpoint: str
    """Base URL of Hugging Face or a mirror of it (HF_ENDPOINT)."""
    civitai_endpoint: str
    """Base URL of Civitai or a mirror of it (CIVITAI_ENDPOINT)."""
    weights_verify: str
    """"quick" or "full" (WEIGHTS_VERIFY; default quick): how the image's own weights are checked at each start."""
    linked_weights_bytes: int
    """Room for weights that workflows name by link (LINKED_WEIGHTS_GB, of 1000^3 bytes; default 20, 0 for none)."""
    weights_out: Path | None
    """Where train() puts the tar when its caller shares this disk (WEIGHTS_OUT); the answer is then the path alone."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings. Raises RequestError that names the variable when a value cannot be used."""
        device = environ.get("COMFYUI_DEVICE") or "auto"
        if device not in ("auto", "cpu", "gpu"):
            raise RequestError(f"COMFYUI_DEVICE is {device!r}; set it to auto, cpu or gpu.")
        weights_verify = environ.get("WEIGHTS_VERIFY") or "quick"
        if weights_verify not in ("quick", "full"):
            raise RequestError(f"WEIGHTS_VERIFY is {weights_verify!r}; set it to quick or full.")
        return cls(
            upstream_dir=_path(environ, "COMFYUI_DIR", PROJECT_ROOT / "comfyui" / "upstream"),
            models_dir=_path(environ, "MODELS_DIR", PROJECT_ROOT / "models"),
            data_dir=_path(environ, "DATA_DIR", PROJECT_ROOT / ".data"),
            device=device,
            engine_args=_arguments(environ, "COMFYUI_ARGS"),
            engine_start_timeout_s=_seconds(environ, "ENGINE_START_TIMEOUT_S", 300.0),
            allow_private_urls=_flag(environ, "ALLOW_PRIVATE_URLS"),
            hf_endpoint=(environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
            civitai_endpoint=(environ.get("CIVITAI_ENDPOINT") or "https://civitai.com").rstrip("/"),
            weights_verify=weights_verify,
            linked_weights_bytes=_gigabytes(environ, "LINKED_WEIGHTS_GB", 20.0),
            weights_out=_path(environ, "WEIGHTS_OUT", Path()) if environ.get("WEIGHTS_OUT") else None,
        )


def _path(environ: Mapping[str, str], name: str, default: Path) -> Path:
    path = Path(environ.get(name) or default)
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise RequestError(f"{name} is {str(path)!r}, and there is no such home folder.") from error


def _arguments(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    value = environ.get(name, "")
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise RequestError(f"{name} is {value!r}, which is not a command line: {error}.") from error


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        raise RequestError(f"{name} is {value!r}; set it to 1 or 0.")
    return value == "1"


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    seconds = _number(environ, name, default)
    if not 0 < seconds < float("inf"):
        raise RequestError(f"{name} is {environ.get(name)!r}; set it to a number of seconds above 0.")
    return seconds


def _gigabytes(environ: Mapping[str, str], name: str, default: float) -> int:
    """The number of bytes."""
    gigabytes = _number(environ, name, default)
    if not 0 <= gigabytes < float("inf"):
        raise RequestError(f"{name} is {environ.get(name)!r}; set it to a number of GB, or to 0.")
    return int(gigabytes * 1000**3)


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    """The number, NaN for a text that is none."""
    value = environ.get(name)
    if not value:
        return default
    try:
        return float(value)
    except ValueError:
        return float("nan")
