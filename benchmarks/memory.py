"""Peak memory of baking and of restoring one file of 1 GiB, each in a process of its own (its ru_maxrss)."""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import verdict
from comfyui.local.file_server import serve_files
from comfyui.settings import Settings
from comfyui.weights.bake.bake import bake
from comfyui.weights.listener import PlainLines
from comfyui.weights.restore.restore import restore
from comfyui.weights.sources import NO_TOKENS

ASKED_MB = 150.0


def make_safetensors(path: Path, data_bytes: int) -> None:
    """A valid safetensors file with one tensor of zeros, mostly a hole on disk."""
    header = {"w": {"dtype": "U8", "shape": [data_bytes], "data_offsets": [0, data_bytes]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + data_bytes)


def work(job: str, source: str, target: Path) -> None:
    """Do one job and print this process's peak memory in MB."""
    settings = replace(Settings.from_environ(), allow_private_urls=True)
    if job == "bake":
        bake({"checkpoints": source}, target, settings, NO_TOKENS, PlainLines(lambda _line: None))
    else:
        restore(source, target, settings, PlainLines(lambda _line: None))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (1e6 if sys.platform == "darwin" else 1e3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both jobs and print their peaks."""
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default 1024)")
    parser.add_argument("--job", nargs=3, metavar=("JOB", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.job:
        work(given.job[0], given.job[1], Path(given.job[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_safetensors(folder / "big.safetensors", given.mib * 1024**2)
        tar = folder / "weights.tar"
        with serve_files({"big.safetensors": folder / "big.safetensors", "weights.tar": tar}) as urls:
            for job, source, target in (
                ("bake", urls["big.safetensors"], tar),
                ("restore", urls["weights.tar"], folder / "models"),
            ):
                command = [sys.executable, "-m", "benchmarks.memory", "--job", job, source, str(target)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                verdict(f"{job} of {given.mib} MiB, peak", float(done.stdout), ASKED_MB, " MB")


if __name__ == "__main__":
    main()
