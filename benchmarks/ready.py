"""Time until the predictor is READY, without weights, against bare ComfyUI until its first answer."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import bare_comfyui, spread, verdict
from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer
from comfyui.settings import Settings

ASKED = 1.15


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pairs and print the ratio of each and their median."""
    parser = argparse.ArgumentParser(prog="scripts/bench ready", description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="pairs to run, after one that is not counted (default 7)")
    runs = parser.parse_args(arguments).runs
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(Settings.from_environ(), models_dir=Path(folder) / "models", data_dir=Path(folder) / "data")
        for number in range(runs + 1):
            start = time.monotonic()
            with bare_comfyui(settings):
                bare_s = time.monotonic() - start
            environ = {"MODELS_DIR": str(settings.models_dir), "DATA_DIR": str(settings.data_dir)}
            start = time.monotonic()
            with CogServer("predict", environ=environ, sink=lambda _line: None) as server:
                server.wait_ready(Deadline(120, "The predictor's setup"))
                ours_s = time.monotonic() - start
            if number:
                ours.append(ours_s)
                bare.append(bare_s)
                print(f"pair {number}: predictor {ours_s:.2f} s, bare ComfyUI {bare_s:.2f} s, {ours_s / bare_s:.3f}")
    print(f"predictor:    {spread(ours, 's')}")
    print(f"bare ComfyUI: {spread(bare, 's')}")
    ratios = [our / their for our, their in zip(ours, bare, strict=True)]
    verdict("median ratio", statistics.median(ratios), ASKED)


if __name__ == "__main__":
    main()
