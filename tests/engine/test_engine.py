"""The real ComfyUI under our supervision: started, followed, stopped, killed, cut off, and back again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from comfyui.deadline import Deadline
from comfyui.engine.client import ComfyUIClient, PromptRefusedError
from comfyui.engine.engine import ANSWER_S, ASK_TRIES, Engine
from comfyui.engine.events import Event, ExecutionFailed, Progress
from comfyui.engine.follow import LogLine
from comfyui.engine.server import SEE_DEATH_S, free_port
from comfyui.errors import DeadlineError, EngineDiedError, EngineError, StorageError
from comfyui.prediction import PredictionRequest, predict
from comfyui.settings import Settings
from comfyui.workflow.model_links import ModelLinks
from tests.parts import EMPTY_IMAGE, SD3, TEST_MODELS, demo_files, example, largest_file

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK_S = 60.0
STALL_S = 5.0
"""Longer than a busy machine is silent between two steps of the sampler."""


@pytest.fixture(scope="module")
def engine_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    demo_files(*SD3)
    return replace(
        Settings.from_environ({}), models_dir=TEST_MODELS, data_dir=tmp_path_factory.mktemp("data"), device="cpu"
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(engine_settings: Settings) -> AsyncIterator[Engine]:
    """One ComfyUI for all tests of this file; a test that kills it leaves it to the next to start it again."""
    engine = Engine(engine_settings, sink=lambda _line: None)
    await engine.ready()
    yield engine
    await engine.stop()


def quick() -> Deadline:
    return Deadline(QUICK_S, "A test's workflow")


def ignore(_item: Event | LogLine) -> None:
    return


def endless() -> dict[str, Any]:
    """A workflow that runs for hours."""
    return example("tiny_sd3", steps=10_000, seed=time.time_ns() % 2**32, width=256, height=256)


async def warm_up(engine: Engine) -> None:
    """Load what `endless` needs: a checkpoint loads in silence, for seconds on a busy machine."""
    workflow = example("tiny_sd3", steps=1, seed=time.time_ns() % 2**32, width=256, height=256)
    assert (await engine.run(workflow, deadline=quick(), observe=ignore)).succeeded


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    engine: Engine, workflow: dict[str, Any], deadline: Deadline, stall_s: float | None = None
) -> AsyncIterator[asyncio.Task[Any]]:
    """The workflow, once its sampler is at work."""
    at_work = asyncio.Event()

    def observe(item: Event | LogLine) -> None:
        if isinstance(item, Progress):
            at_work.set()

    task = asyncio.ensure_future(engine.run(workflow, deadline=deadline, observe=observe, stall_s=stall_s))
    try:
        await asyncio.wait_for(at_work.wait(), QUICK_S)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def queue_is_empty(engine: Engine) -> bool:
    client = await engine.client()
    queue = await client._json("GET", "/queue")
    return not queue["queue_running"] and not queue["queue_pending"]


async def test_a_run_gives_the_history_and_shows_events_and_log_lines(engine: Engine) -> None:
    seen: list[Event | LogLine] = []
    entry = await engine.run(example("tiny_sd3", seed=1), deadline=quick(), observe=seen.append)
    assert entry.succeeded
    assert entry.failure is None
    (image,) = entry.outputs["8"]["images"]
    assert (engine.folders.output / image["subfolder"] / image["filename"]).is_file()
    assert [item.maximum for item in seen if isinstance(item, Progress)][-1] > 1
    assert any("got prompt" in item.text for item in seen if isinstance(item, LogLine))


async def test_history_is_complete_however_often_the_prompt_is_answered_from_cache(engine: Engine) -> None:
    workflow = example("tiny_sd3", seed=2)
    for _ in range(25):
        entry = await engine.run(workflow, deadline=quick(), observe=ignore)
        assert entry.outputs["8"]["images"]


async def test_a_finished_prompt_leaves_no_history_in_comfyui(engine: Engine) -> None:
    await engine.run(EMPTY_IMAGE, deadline=quick(), observe=ignore)
    client = await engine.client()
    assert await client._json("GET", "/history") == {}


async def test_two_prompts_at_once_each_get_their_own_outputs(engine: Engine) -> None:
    def prompt(name: str) -> dict[str, Any]:
        return {
            **EMPTY_IMAGE,
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": name}},
        }

    entries = await asyncio.gather(
        *(engine.run(prompt(f"name{number}"), deadline=quick(), observe=ignore) for number in range(6))
    )
    for number, entry in enumerate(entries):
        assert entry.outputs["2"]["images"][0]["filename"].startswith(f"name{number}_")


async def test_a_partly_invalid_workflow_is_refused_whole_and_taken_out_of_the_queue(engine: Engine) -> None:
    broken = {**EMPTY_IMAGE, "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "no images"}}}
    with pytest.raises(PromptRefusedError) as refusal:
        await engine.run(broken, deadline=quick(), observe=ignore)
    assert list(refusal.value.answer["node_errors"]) == ["3"]
    assert await queue_is_empty(engine)


async def test_a_failing_node_is_in_the_history_with_its_exception(engine: Engine, engine_settings: Settings) -> None:
    whole = demo_files(*SD3)["checkpoints/tiny-sd3-notext.safetensors"].read_bytes()
    cut = engine_settings.models_dir / "checkpoints" / "cut-in-half.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    try:
        entry = await engine.run(
            example("tiny_sd3", ckpt_name="cut-in-half.safetensors"), deadline=quick(), observe=ignore
        )
    finally:
        cut.unlink()
    assert isinstance(entry.failure, ExecutionFailed)
    assert entry.failure.class_type == "CheckpointLoaderSimple"
    assert "SafetensorError" in entry.failure.exception_type


async def test_a_cancel_stops_the_prompt_and_comfyui_lives_on(engine: Engine) -> None:
    async with running(engine, endless(), quick()) as task:
        pid = engine.pid
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await queue_is_empty(engine)
    assert (await engine.run(EMPTY_IMAGE, deadline=quick(), observe=ignore)).succeeded
    assert engine.pid == pid


async def test_however_often_a_run_is_cancelled_it_ends_when_comfyui_has_let_go(engine: Engine) -> None:
    """Whoever ran the prompt gives ComfyUI's folders to the next one then."""
    async with running(engine, endless(), quick()) as task:
        while not task.done():
            task.cancel()
            await asyncio.sleep(0.001)
        assert task.cancelled()
        assert await queue_is_empty(engine)
    assert (await engine.run(EMPTY_IMAGE, deadline=quick(), observe=ignore)).succeeded


async def test_the_deadline_stops_the_prompt_and_says_so(engine: Engine) -> None:
    with pytest.raises(DeadlineError, match=r"Sampling took longer than the 1\.5 s it was given"):
        await engine.run(endless(), deadline=Deadline(1.5, "Sampling"), observe=ignore)
    assert (await engine.run(EMPTY_IMAGE, deadline=quick(), observe=ignore)).succeeded


async def test_a_comfyui_that_hangs_is_noticed_ended_and_started_again(engine: Engine) -> None:
    """SIGSTOP: the process is alive, its sockets are open, and nothing comes any more."""
    await warm_up(engine)
    pid = engine.pid
    assert pid is not None
    async with running(engine, endless(), quick(), stall_s=STALL_S) as task:
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError, match=r"any sign of life of ComfyUI took longer than the 5 s"):
            await task
    assert not engine.alive()
    assert (await engine.run(EMPTY_IMAGE, deadline=quick(), observe=ignore)).succeeded
    assert engine.pid != pid


async def test_a_comfyui_that_is_silent_for_some_seconds_with_nothing_to_do_is_left_alone(engine: Engine) -> None:
    """It may be unloading models."""
    await engine.ready()
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(ANSWER_S + SEE_DEATH_S + 2, os.kill, pid, signal.SIGCONT)
    assert await (await engine.client()).object_info()
    assert engine.pid == pid


async def test_a_killed_comfyui_is_noticed_and_started_again(engine: Engine) -> None:
    await engine.ready()
    async with running(engine, endless(), quick()) as task:
        first_pid = engine.pid
        assert first_pid is not None
        start = time.monotonic()
        os.kill(first_pid, signal.SIGKILL)
        with pytest.raises(EngineDiedError, match="while it ran the workflow, killed by signal 9") as death:
            await task
        assert time.monotonic() - start < QUICK_S / 3, "long before any deadline"
    assert death.value.had_prompt
    assert death.value.returncode == -signal.SIGKILL
    assert any("got prompt" in line for line in death.value.last_lines)
    assert (await engine.run(EMPTY_IMAGE, deadline=quick(), observe=ignore)).succeeded
    assert engine.pid != first_pid


async def test_a_killed_comfyui_is_noticed_though_another_is_there_already(engine: Engine) -> None:
    """As when another prediction starts it again in the moment before the one that was followed looks."""
    await engine.ready()
    async with running(engine, endless(), quick()) as task:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        while engine.alive():
            time.sleep(0.001)  # noqa: ASYNC251 - nobody else may come to look meanwhile
        engine.spawn()
        with pytest.raises(EngineDiedError, match="while it ran the workflow, killed by signal 9"):
            await task
        assert engine.alive()
    assert (await engine.run(EMPTY_IMAGE, deadline=quick(), observe=ignore)).succeeded


@pytest.mark.parametrize("deaths", [2, 3])
async def test_a_question_is_asked_again_while_comfyui_dies_of_others(engine: Engine, deaths: int) -> None:
    pids: list[int] = []

    async def question(client: ComfyUIClient) -> Any:
        if len(pids) < deaths:
            assert engine.pid is not None
            pids.append(engine.pid)
            os.kill(engine.pid, signal.SIGKILL)
        return await client.object_info()

    if deaths < ASK_TRIES:
        assert "KSampler" in await engine.ask(question)
    else:
        with pytest.raises(EngineError, match="ComfyUI does not answer GET /object_info"):
            await engine.ask(question)
    assert len(set(pids)) == deaths


@dataclass
class Proxy:
    """Stands between us and ComfyUI, on loopback."""

    server: asyncio.Server
    connections: list[asyncio.StreamWriter]

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        for writer in self.connections:
            writer.transport.abort()


@asynccontextmanager
async def proxied(settings: Settings) -> AsyncIterator[tuple[Engine, Proxy]]:
    """A ComfyUI of its own, reached through a proxy."""
    engine = Engine(settings, sink=lambda _line: None)
    await engine.ready()
    server = engine._require_server()
    connections: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            return  # Cut on purpose.
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", true_port)
        connections.extend((writer, to_writer))
        await asyncio.gather(pipe(reader, to_writer), pipe(to_reader, writer), return_exceptions=True)

    true_port, server.port = server.port, free_port()
    proxy = await asyncio.start_server(relay, "127.0.0.1", server.port)
    try:
        yield engine, Proxy(proxy, connections)
    finally:
        proxy.close()
        await engine.stop()
        await proxy.wait_closed()


async def test_a_dropped_websocket_loses_nothing(engine_settings: Settings) -> None:
    """Every connection is cut while the sampler works; the run must still end with its outputs."""
    async with proxied(engine_settings) as (engine, proxy):
        workflow = example("tiny_sd3", steps=40, seed=3, width=256, height=256)
        async with running(engine, workflow, quick()) as task:
            proxy.cut()
            entry = await task
        assert entry.succeeded
        assert entry.outputs["8"]["images"]


async def test_a_comfyui_that_hangs_and_takes_no_connection_is_noticed(engine_settings: Settings) -> None:
    async with proxied(engine_settings) as (engine, proxy):
        assert engine.pid is not None
        await warm_up(engine)
        async with running(engine, endless(), quick(), stall_s=STALL_S) as task:
            os.kill(engine.pid, signal.SIGSTOP)
            proxy.server.close()
            proxy.cut()
            with pytest.raises(DeadlineError, match=r"any sign of life of ComfyUI took longer than the 5 s"):
                await task
        assert not engine.alive()


async def test_a_comfyui_that_ends_while_it_starts_says_why_at_once(engine_settings: Settings) -> None:
    engine = Engine(replace(engine_settings, engine_args=("--no-such-option",)), sink=lambda _line: None)
    start = time.monotonic()
    with pytest.raises(EngineDiedError, match="while it started, with exit code 2") as death:
        await engine.ready()
    assert "unrecognized arguments: --no-such-option" in str(death.value)
    assert time.monotonic() - start < 15
    await engine.stop()


async def test_a_start_that_takes_too_long_is_a_deadline_error_and_leaves_no_process(engine_settings: Settings) -> None:
    engine = Engine(replace(engine_settings, engine_start_timeout_s=0.3), sink=lambda _line: None)
    with pytest.raises(DeadlineError, match=r"Starting ComfyUI took longer than the 0\.3 s"):
        await engine.ready()
    assert engine.pid is not None
    assert not psutil.pid_exists(engine.pid), "the next prediction would wait for it again"
    await engine.stop()


async def test_a_missing_comfyui_names_the_command_that_fetches_it(settings: Settings, tmp_path: Path) -> None:
    engine = Engine(replace(settings, upstream_dir=tmp_path / "nowhere"), sink=lambda _line: None)
    with pytest.raises(EngineError, match="scripts/fetch-comfyui"):
        await engine.ready()
    await engine.stop()


async def test_stop_ends_the_process_and_removes_its_folder(engine_settings: Settings) -> None:
    engine = Engine(engine_settings, sink=lambda _line: None)
    await engine.ready()
    pid, run_dir = engine.pid, engine.folders.output.parent
    assert pid is not None
    assert run_dir.is_dir()
    await engine.stop()
    assert not psutil.pid_exists(pid)
    assert not run_dir.exists()


async def test_comfyui_gets_no_secret_of_ours(engine_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    engine = Engine(engine_settings, sink=lambda _line: None)
    engine.spawn()
    process = psutil.Process(engine.pid)
    # The kernel shows it only some moments after a program has begun.
    await until(lambda: bool(process.environ()))
    environ = process.environ()
    await engine.stop()
    assert "r8_secret" not in json.dumps(environ)
    assert "hf_secret" not in json.dumps(environ)
    assert environ["PATH"]


async def test_every_node_class_is_known_while_turns_change(engine: Engine) -> None:
    """LoadImage lists the input folder when its class is asked about; without the folder it would not be a class."""
    changing = asyncio.Event()

    async def change() -> None:
        while not changing.is_set():
            async with engine.own_folders() as own, engine.turn(own):
                await asyncio.sleep(0)

    task = asyncio.ensure_future(change())
    try:
        for _ in range(5):
            assert "LoadImage" in await engine.object_info(fresh=True)
    finally:
        changing.set()
        await task


async def test_a_disk_that_takes_no_more_is_a_storage_error_and_leaves_nothing(
    engine: Engine, engine_settings: Settings
) -> None:
    photo = "data:image/png;base64," + base64.b64encode(b"0" * 2_000_000).decode()
    load = {"class_type": "LoadImage", "inputs": {"image": photo}}
    request = PredictionRequest(json.dumps({"1": load, "2": EMPTY_IMAGE["2"]}))
    refused = pytest.raises(StorageError, match="the files of this prediction cannot be written")
    with largest_file(1_000_000), refused:
        await predict(engine, engine_settings, ModelLinks(engine, engine_settings), request, lambda _line: None)
    assert list((engine.folders.input.parent / "predictions").iterdir()) == []
