"""Two predictions in flight never see each other's files, the next one's inputs come while ComfyUI works, and hundreds
of good, bad, cancelled and crashing ones leave nothing behind."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from PIL import Image

from comfyui.local.cog_server import file_of_data_uri
from tests.e2e.conftest import Served
from tests.e2e.test_faults import with_fault
from tests.e2e.test_predictions import engines_of
from tests.parts import EMPTY_IMAGE, example

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
SOAK = 300
CRASHES = 2
"""Of each kind, in the soak."""
WORKER_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""asyncio's own threads, which come as they are needed and stay (concurrent.futures.ThreadPoolExecutor)."""


def peeking(mark: str, seconds: float = 0.3) -> dict[str, Any]:
    """Loads input.png, waits, saves it, shows it, and reports what lies in ComfyUI's folders."""
    wait = {"image": ["1", 0], "seconds": seconds, "mark": f"{mark}-{time.time_ns()}"}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "input.png"}},
        "2": {"class_type": "TestWait", "inputs": wait},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "same"}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        "5": {"class_type": "TestPeek", "inputs": {"image": ["2", 0], "mark": mark}},
    }


def test_predictions_in_flight_never_see_each_others_files(busy_predictor: Served, tmp_path: Path) -> None:
    def predict(color: str) -> list[Any]:
        picture = tmp_path / f"{color}.png"
        Image.new("RGB", (8, 8), COLORS[color]).save(picture)
        workflow = json.dumps(peeking(color))
        return list(busy_predictor.output_of(workflow_json=workflow, input_file=str(picture), output_format="png"))

    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(COLORS, pool.map(predict, COLORS), strict=True))
    for color, (saved, names) in answers.items():
        with Image.open(io.BytesIO(file_of_data_uri(saved))) as image:
            assert image.getpixel((4, 4)) == COLORS[color]
        seen = file_of_data_uri(names).decode().split()
        assert {"input.png", f"{color}.png"} <= set(seen)
        assert not [name for name in seen if name.startswith("left-by-")]
        assert not {f"{other}.png" for other in COLORS if other != color} & set(seen)


def test_the_next_prediction_waits_in_line_and_says_so(busy_predictor: Served) -> None:
    workflow = {**EMPTY_IMAGE, "3": {"class_type": "TestWait", "inputs": {"image": ["1", 0], "seconds": 1.5}}}
    workflow["2"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "slow"}}
    with ThreadPoolExecutor(2) as pool:
        first, second = [
            pool.submit(busy_predictor.call, workflow_json=json.dumps(_marked(workflow, number))) for number in range(2)
        ]
        answers = sorted((first.result(), second.result()), key=lambda answer: answer["metrics"]["wait_seconds"])
    assert [answer["status"] for answer in answers] == ["succeeded", "succeeded"]
    assert "ComfyUI is busy with another prediction" in answers[1]["logs"]
    assert answers[1]["metrics"]["wait_seconds"] > 1.0 > answers[0]["metrics"]["wait_seconds"]
    # Nobody sees the progress of another's run.
    assert all(answer["logs"].count("100%|") == 1 for answer in answers)


def _marked(workflow: dict[str, Any], number: int) -> dict[str, Any]:
    wait = workflow["3"]
    return {**workflow, "3": {**wait, "inputs": {**wait["inputs"], "mark": f"{number}-{time.time_ns()}"}}}


@dataclass(frozen=True)
class Footprint:
    """What a server takes: of its worker, and on its disk."""

    rss_mb: float
    threads: int
    open_files: int
    run_files: int


def footprint(served: Served) -> Footprint:
    """Of the process that runs our code, and of the folders that predictions use."""
    (worker,) = [child for child in psutil.Process(served.server.pid).children() if _is_worker(child)]
    with worker.oneshot():
        files = [path for path in (served.data_dir / "runs").rglob("*") if path.is_file() and path.name != ".lock"]
        return Footprint(worker.memory_info().rss / 1e6, worker.num_threads(), worker.num_fds(), len(files))


def _is_worker(process: psutil.Process) -> bool:
    return not any("main.py" in part for part in process.cmdline())


@pytest.mark.timeout(900)
def test_a_soak_of_mixed_predictions_leaves_nothing_behind(busy_predictor: Served, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), COLORS["red"]).save(tmp_path / "red.png")
    kinds = _Kinds(busy_predictor, tmp_path / "red.png")
    for kind in (*kinds.common(), *kinds.crashes()):
        kind()
    before = footprint(busy_predictor)
    source = random.Random(4)
    crashes = [kind for kind in kinds.crashes() for _ in range(CRASHES)]
    weights = kinds.common()
    plan = crashes + source.choices(list(weights), weights=list(weights.values()), k=SOAK - len(crashes))
    source.shuffle(plan)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(kind) for kind in plan]:
            done.result()
    assert busy_predictor.output_of(workflow_json=json.dumps(EMPTY_IMAGE))
    after = footprint(busy_predictor)
    assert after.run_files == 0
    assert after.open_files <= before.open_files + 2
    assert after.threads <= before.threads + WORKER_THREADS
    assert after.rss_mb < before.rss_mb + 40
    assert len(engines_of(busy_predictor.server)) == 1


class _Kinds:
    """Predictions of every kind; each checks its own end."""

    def __init__(self, served: Served, picture: Path) -> None:
        self._served = served
        self._picture = picture
        self._number = 0
        self._kills = 0
        self._lock = threading.Lock()

    def crashes(self) -> list[Callable[[], None]]:
        """Those after which ComfyUI has to start again."""
        return [self.exiting, self.killed]

    def common(self) -> dict[Callable[[], None], int]:
        """The others, each with how often it comes, in a hundred."""
        return {
            self.small: 30,
            self.sampled: 20,
            self.with_input: 20,
            self.bad_json: 8,
            self.bad_class: 8,
            self.failing: 6,
            self.cancelled: 8,
        }

    def small(self) -> None:
        self._succeed(EMPTY_IMAGE)

    def sampled(self) -> None:
        self._succeed(example("tiny_sd3", seed=self._next(), steps=2))

    def with_input(self) -> None:
        output = self._succeed(peeking(f"soak{self._next()}", seconds=0.01), input_file=str(self._picture))
        assert not output or "left-by-" not in file_of_data_uri(output[1]).decode()

    def bad_json(self) -> None:
        assert "not valid JSON" in self._fail('{"1": ')

    def bad_class(self) -> None:
        kills = self._kills
        error = self._fail({"1": {"class_type": "NoSuchNode", "inputs": {}}})
        assert "NoSuchNode" in error or self._was_killed(error, kills)

    def failing(self) -> None:
        kills = self._kills
        error = self._fail(with_fault("disk_full"))
        assert "disk is full" in error or self._was_killed(error, kills)

    def cancelled(self) -> None:
        name, url = f"soak-{self._next()}", self._served.server.base_url
        workflow = example("tiny_sd3", steps=10_000, seed=self._next(), width=256, height=256)
        body = {"input": {"workflow_json": json.dumps(workflow)}}

        def put() -> dict[str, Any]:
            while (response := requests.put(f"{url}/predictions/{name}", json=body, timeout=60)).status_code == 409:
                time.sleep(0.05)
            answer: dict[str, Any] = response.json()
            return answer

        kills = self._kills
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(put)
            time.sleep(random.random())
            while not running.done():
                requests.post(f"{url}/predictions/{name}/cancel", timeout=10)
                time.sleep(0.05)
        answer = running.result()
        assert answer["status"] == "canceled" or self._was_killed(answer["error"], kills)

    def exiting(self) -> None:
        assert "ComfyUI ended" in self._fail(with_fault("os_exit"))

    def killed(self) -> None:
        self._kills += 1
        for engine in engines_of(self._served.server):
            with suppress(ProcessLookupError):
                os.kill(engine.pid, signal.SIGKILL)
        self._succeed(EMPTY_IMAGE)

    def _next(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def _was_killed(self, error: str, kills: int) -> bool:
        """Whether this failure is the work of `killed`, which runs beside this one."""
        return self._kills > kills and "killed by signal 9" in error

    def _succeed(self, workflow: dict[str, Any], **inputs: Any) -> list[Any]:
        kills = self._kills
        answer = self._served.call(workflow_json=json.dumps(workflow), **inputs)
        assert answer["status"] == "succeeded" or self._was_killed(answer["error"], kills), answer
        return list(answer.get("output") or [])

    def _fail(self, workflow: dict[str, Any] | str) -> str:
        text = workflow if isinstance(workflow, str) else json.dumps(workflow)
        return self._served.error_of(workflow_json=text)
