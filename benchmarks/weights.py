"""Bake and restore against `curl -o` and `curl | tar x` of the same files from the same nginx, in turn: A B A B …

Ours starts Python, asks the server about each file, and checks every SHA-256; the rivals check nothing. Times are of
whole commands. `bytes written` is what the process caused to be written to the disk (/proc/self/io, Linux), `peak` its
largest resident size (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.common import verdict, verdict_at_least
from benchmarks.limited_server import CONNECTIONS, LIMITED_MIB_S, serve_limited
from benchmarks.nginx import serve

MIB = 1024**2
SHARES = (0.335, 0.25, 0.21, 0.165, 0.04)
"""How the bytes are dealt out to the five files."""
ASKED_BAKE, ASKED_RESTORE, ASKED_LIMITED = 1.0, 1.2, 6.0
ASKED_WRITTEN, ASKED_PEAK_MB = 1.02, 150.0

_PLAIN_LOOP = """
import hashlib, sys, tarfile, requests
class Hashed:
    def __init__(self, raw): self.raw, self.sha = raw, hashlib.sha256()
    def read(self, count=-1):
        data = self.raw.read(count)
        self.sha.update(data)
        return data
out, *urls = sys.argv[1:]
with tarfile.open(out, "w") as tar:
    for url in urls:
        with requests.get(url, stream=True) as response:
            info = tarfile.TarInfo(url.rpartition("/")[2])
            info.size = int(response.headers["Content-Length"])
            tar.addfile(info, Hashed(response.raw))
"""


@dataclass
class Figures:
    """What the runs of one job took."""

    seconds: list[float] = field(default_factory=list)
    peaks_mb: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """The middle one of the times."""
        return statistics.median(self.seconds)


def make_files(folder: Path, total_bytes: int) -> list[Path]:
    """Five safetensors files of random bytes."""
    noise = os.urandom(64 * MIB)
    paths = []
    for number, share in enumerate(SHARES):
        size = int(total_bytes * share)
        header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        path = folder / f"f{number}.safetensors"
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for start in range(0, size, len(noise)):
                file.write(noise[: size - start])
        paths.append(path)
    return paths


def work(job: str, source: str, target: Path) -> None:
    """Do one of our jobs and print what it cost as JSON."""
    from comfyui.settings import Settings
    from comfyui.weights.bake.bake import bake
    from comfyui.weights.listener import PlainLines
    from comfyui.weights.restore.restore import restore
    from comfyui.weights.sources import NO_TOKENS

    settings = replace(Settings.from_environ(), allow_private_urls=True)
    listener = PlainLines(lambda _line: None)
    if job == "bake":
        bake({"checkpoints": source}, target, settings, NO_TOKENS, listener)
    else:
        restore(source, target, settings, listener)
    print(json.dumps({"peak_mb": peak_mb(), "written": of_process("io", "write_bytes")}))


def of_process(file: str, key: str) -> int:
    """A number that Linux keeps of this process, 0 elsewhere."""
    path = Path("/proc/self") / file
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def peak_mb() -> float:
    """This process's largest resident size; on Linux its own alone, where ru_maxrss begins with its parent's."""
    if kib := of_process("status", "VmHWM"):
        return kib * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


class Bench:
    """Runs jobs into `folder` and remembers what they took; every run finds the disk at rest and its place empty."""

    def __init__(self, folder: Path) -> None:
        self._out = folder / "out"
        self.results: dict[str, Figures] = {}

    def ours(self, name: str, job: str, source: str, result: str) -> None:
        """Time `bake` or `restore` in a process of its own."""
        command = [sys.executable, "-m", "benchmarks.weights", "--job", job, source, str(self._out / result)]
        printed = self._timed(name, command)
        cost = json.loads(printed)
        self.results[name].peaks_mb.append(cost["peak_mb"])
        self.results[name].written.append(cost["written"])

    def rival(self, name: str, command: Sequence[str]) -> None:
        """Time a command."""
        self._timed(name, [part.replace("OUT", str(self._out)) for part in command])

    def _timed(self, name: str, command: Sequence[str]) -> str:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        os.sync()
        began = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        took_s = time.monotonic() - began
        self.results.setdefault(name, Figures()).seconds.append(took_s)
        print(f"  {name}: {took_s:.2f} s", flush=True)
        return done.stdout


def curl(urls: Sequence[str]) -> list[str]:
    """`curl -o` of files, one after another over one connection."""
    return ["curl", "-sSf", *(part for n, url in enumerate(urls) for part in ("-o", f"OUT/c{n}", url))]


def curl_tar(url: str) -> list[str]:
    """`curl | tar x` of a tar."""
    return ["sh", "-c", f"curl -sSf {url} | tar -xf - -C OUT"]


def full_speed(bench: Bench, base: str, names: Sequence[str], runs: int) -> None:
    """The races without a limit."""
    urls = [f"{base}/{name}" for name in names]
    tar = f"{base}/weights.tar"
    for _ in range(runs):
        bench.rival("curl -o", curl(urls))
        bench.ours("bake", "bake", "\n".join(urls), "weights.tar")
        bench.rival("requests + hashlib + tarfile", [sys.executable, "-c", _PLAIN_LOOP, "OUT/p.tar", *urls])
        bench.rival("curl -o of the tar", curl([tar]))
        bench.ours("restore", "restore", tar, "models")
        bench.rival("curl | tar x", curl_tar(tar))


def limited(bench: Bench, base: str, names: Sequence[str]) -> None:
    """One run of each with the limited server: these times hardly differ from run to run."""
    urls = [f"{base}/{name}" for name in names]
    bench.rival("limited curl -o, 1 file", curl(urls[-1:]))
    bench.ours("limited bake, 5 files", "bake", "\n".join(urls), "weights.tar")
    bench.ours("limited bake, 1 file", "bake", urls[0], "weights.tar")
    bench.ours("limited restore, 5 files", "restore", f"{base}/weights.tar", "models")
    bench.ours("limited restore, 1 file", "restore", f"{base}/one.tar", "models")


def judge(results: dict[str, Figures], sizes: Sequence[int]) -> None:
    """Print the figures beside what was asked."""
    total = sum(sizes)
    mib_s: Callable[[str], float] = lambda name: total / MIB / results[name].median_s  # noqa: E731
    print(f"\n{total / MIB:.0f} MiB in {len(sizes)} files, medians:")
    for name in ("curl -o", "curl -o of the tar", "requests + hashlib + tarfile", "curl | tar x", "bake", "restore"):
        print(f"  {name}: {results[name].median_s:.2f} s, {mib_s(name):.0f} MiB/s")
    verdict_at_least("bake, times curl -o", results["curl -o"].median_s / results["bake"].median_s, ASKED_BAKE)
    of_tar = results["curl -o of the tar"].median_s
    verdict_at_least("restore, times curl -o of the tar", of_tar / results["restore"].median_s, ASKED_RESTORE)
    one = sizes[-1] / MIB / results["limited curl -o, 1 file"].median_s
    print(f"with {CONNECTIONS} connections of {LIMITED_MIB_S} MiB/s (curl -o got {one:.0f} MiB/s):")
    for name, size in (("5 files", total), ("1 file", sizes[0])):
        for job in ("bake", "restore"):
            rate = size / MIB / results[f"limited {job}, {name}"].median_s
            verdict_at_least(f"{job} of {name}, times one connection", rate / LIMITED_MIB_S, ASKED_LIMITED)
    for job in ("bake", "restore"):
        verdict(f"{job}, bytes written for each byte", max(results[job].written) / total, ASKED_WRITTEN)
        peak = max(max(result.peaks_mb) for name, result in results.items() if job in name)
        verdict(f"{job}, peak", peak, ASKED_PEAK_MB, " MB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files, run everything and print the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench weights", description=__doc__)
    parser.add_argument("--gib", type=float, default=3.0, help="bytes in all, in GiB (default 3)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each at full speed (default 3)")
    parser.add_argument(
        "--folder", type=Path, help="where to work, on the disk to be measured; takes 4 times the bytes"
    )
    parser.add_argument("--job", nargs=3, metavar=("JOB", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.job:
        work(given.job[0], given.job[1], Path(given.job[2]))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (root := folder / "www").mkdir()
        paths = make_files(root, int(given.gib * 1024**3))
        with serve(root, folder) as fast, serve_limited(root) as slow:
            bench = Bench(folder)
            # The tars to restore are what bake makes.
            for tar, files in (("weights.tar", paths), ("one.tar", paths[:1])):
                bench.ours("first bake", "bake", "\n".join(f"{fast}/{path.name}" for path in files), tar)
                (folder / "out" / tar).replace(root / tar)
            full_speed(bench, fast, [path.name for path in paths], given.runs)
            limited(bench, slow, [path.name for path in paths])
        judge(bench.results, [path.stat().st_size for path in paths])


if __name__ == "__main__":
    main()
