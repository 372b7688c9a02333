"""What the benchmarks share: bare ComfyUI as the rival, medians, and lines that say what was asked."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

from comfyui.engine.device import runs_on_cpu
from comfyui.engine.server import EngineFolders, engine_environment, free_port, main_arguments
from comfyui.settings import Settings

START_LIMIT_S = 120.0


@contextmanager
def bare_comfyui(settings: Settings) -> Iterator[str]:
    """ComfyUI started as its README says, with our folders and options; yields its URL once it answers."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings.models_dir.mkdir(parents=True, exist_ok=True)
        arguments = main_arguments(settings, EngineFolders.under(Path(folder)), port, cpu=runs_on_cpu(settings))
        process = subprocess.Popen(
            [sys.executable, str(settings.upstream_dir / "main.py"), *arguments],
            cwd=settings.upstream_dir,
            env=engine_environment(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/system_stats")
            yield url
        finally:
            process.kill()
            process.wait()


def wait_for(url: str) -> None:
    """Return when the URL answers 200; TimeoutError after START_LIMIT_S."""
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.02)
    raise TimeoutError(url)


def spread(values: Sequence[float], unit: str) -> str:
    """Minimum, median and maximum of the values."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"min {low:.3f}, median {middle:.3f}, max {high:.3f} {unit} over {len(values)} runs"


def verdict(name: str, value: float, limit: float, unit: str = "") -> None:
    """Print a figure beside what was asked of it."""
    print(f"{name}: {value:.3f}{unit} (asked: at most {limit:g}{unit}){'' if value <= limit else '  <-- missed'}")


def verdict_at_least(name: str, value: float, limit: float) -> None:
    """Print a ratio beside the least that was asked of it."""
    print(f"{name}: {value:.3f} (asked: at least {limit:g}){'' if value >= limit else '  <-- missed'}")
