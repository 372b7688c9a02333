"""SIGKILL at any instant of a prediction that brings weights by link: the next process has whole files and no rest."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

import pytest

from comfyui.settings import Settings
from tests.weights.samples import files_below, safetensors, sha256
from tests.weights.tars import IMPATIENT, Lines, RangeServer

FILES = {"/a.safetensors": safetensors(1, 200_000), "/b.safetensors": safetensors(2, 50_000)}
KILLS = 30


def bring_all(url: str, settings: Settings) -> None:
    """What the killed process does, twice: the second time finds the files there."""
    import threading

    from comfyui.weights.linked.linked import Link, LinkedWeights
    from comfyui.weights.sources import NO_TOKENS

    stop = threading.Event()
    weights = LinkedWeights(settings, options=IMPATIENT)
    for _ in range(2):
        with weights.lease() as lease:
            for path, body in FILES.items():
                asked = weights.ask(Link(url + path, "loras"), NO_TOKENS, stop)
                brought = weights.bring(asked, lease, Lines(), stop)
                assert (settings.models_dir / "loras" / brought.name).read_bytes() == body


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """New processes in a few milliseconds, without the threads of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["comfyui.weights.linked.linked", "tests.weights.test_linked_killed"])
    return context


def test_kills_at_random_instants(processes: ForkServerContext, make_settings: Callable[..., Settings]) -> None:
    pick = random.Random(7)
    rests = set()
    with RangeServer() as storage:
        for path, body in FILES.items():
            storage.put(path, body, chunk_delay_s=0.001)
        run(processes, storage.url, make_settings())
        settings = make_settings(data_dir=make_settings().data_dir / "timed")
        whole_s = run(processes, storage.url, settings)
        for number in range(KILLS):
            settings = make_settings(data_dir=make_settings().data_dir / str(number))
            kept = settings.data_dir / "linked-weights"
            process = processes.Process(target=bring_all, args=(storage.url, settings))
            process.start()
            time.sleep(pick.uniform(0.1, 1.0) * whole_s)
            process.kill()
            process.join()
            left = files_below(kept)
            rests |= {"part" for name in left if name.endswith(".part")} | {"file" for name in left if len(name) == 64}
            rests |= {"shown" for name in files_below(settings.models_dir) if "by-link" in name}
            run(processes, storage.url, settings)
            assert set(files_below(kept)) == {"index.json", *(sha256(body) for body in FILES.values())}
            assert files_below(settings.models_dir) == []
            # Anew each time: the machine may have other work by now.
            whole_s = run(processes, storage.url, make_settings(data_dir=settings.data_dir / "timed"))
    assert rests == {"part", "file", "shown"}, "the kills hit too few states"


def run(processes: ForkServerContext, url: str, settings: Settings) -> float:
    """To its end; returns the seconds that it took."""
    began = time.monotonic()
    process = processes.Process(target=bring_all, args=(url, settings))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return time.monotonic() - began
