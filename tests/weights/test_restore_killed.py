"""SIGKILL at any instant of a restore, then the same restore to its end: the right files, and nothing else."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from comfyui.settings import Settings
from tests.weights.samples import safetensors
from tests.weights.tars import IMPATIENT, Lines, RangeServer, baked, member, on_disk

FILES = {
    "checkpoints/m.safetensors": safetensors(1, 400_000),
    "loras/a.safetensors": safetensors(2, 150_000),
    "loras/sub/b.safetensors": safetensors(3, 60_000),
    "vae/c.safetensors": safetensors(4, 512),
}
OLD = {"loras/a.safetensors": safetensors(12, 150_000), "vae/c.safetensors": b"an old one"}
KILLS = 66


def restore_all(location: str, settings: Settings) -> None:
    """What the killed process does."""
    from comfyui.weights.restore.restore import restore

    restore(location, settings.models_dir, settings, Lines(), options=replace(IMPATIENT, connections=2))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """New processes in a few milliseconds, without the threads of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["comfyui.weights.restore.restore", "tests.weights.test_restore_killed"])
    return context


@pytest.mark.parametrize("kind", ["ranges", "whole", "foreign"])
def test_kills_at_random_instants(
    processes: ForkServerContext, make_settings: Callable[..., Settings], tmp_path: Path, kind: str
) -> None:
    tar = baked(FILES)[0]
    if kind == "foreign":
        tar = b"".join(member(path, body) for path, body in FILES.items()) + bytes(1024)
    pick = random.Random(kind)
    states = set()
    with RangeServer() as storage:
        url = storage.put("/w.tar", tar, ranges=kind == "ranges", chunk_delay_s=0.0005)
        settings = make_settings()
        models = settings.models_dir
        run(processes, url, settings)
        shutil.rmtree(models)
        whole_s = run(processes, url, settings)
        for _ in range(KILLS // 3):
            shutil.rmtree(models)
            for path, body in OLD.items():
                (models / path).parent.mkdir(parents=True, exist_ok=True)
                (models / path).write_bytes(body)
            process = processes.Process(target=restore_all, args=(url, settings))
            process.start()
            time.sleep(pick.uniform(0.1, 1.05) * whole_s)
            process.kill()
            process.join()
            left = on_disk(models)
            finals = {path: body for path, body in left.items() if not path.endswith(".part")}
            assert OLD.keys() <= finals.keys()
            assert all(body in (FILES[path], OLD.get(path)) for path, body in finals.items())
            states.add("parts" if len(left) > len(finals) else "done" if finals == FILES else "untouched")
            run(processes, url, settings)
            assert on_disk(models) == FILES
            shutil.rmtree(models)
            # Anew each time: the machine may have other work by now.
            whole_s = run(processes, url, settings)
    assert "parts" in states, "no kill hit a restore at work"


def run(processes: ForkServerContext, url: str, settings: Settings) -> float:
    """To its end; returns the seconds that it took."""
    began = time.monotonic()
    process = processes.Process(target=restore_all, args=(url, settings))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return time.monotonic() - began
