"""A bake that is killed at any instant, and the one after it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from comfyui.errors import EngineError, StoppedError
from comfyui.settings import Settings
from comfyui.weights.bake.bake import bake
from comfyui.weights.listener import PlainLines
from comfyui.weights.sources import NO_TOKENS
from comfyui.weights.tar import journal
from comfyui.weights.transfer.pump import TransferOptions
from tests.weights.fault_server import Fault, FaultServer
from tests.weights.forking import ForkingProcess
from tests.weights.samples import Report, files_below, safetensors, sha256

PIECE = 64 * 1024
KILLS = 100
FILES = [safetensors(number, size) for number, size in enumerate((900_000, 300, 500_000, 200_000))]
# Served without a length: it is fetched last, and anew each time.
STREAM = safetensors(9, 60_000)


@pytest.fixture
def throttled() -> Iterator[FaultServer]:
    with FaultServer(rate=1_000_000) as server:
        yield server


def links(server: FaultServer, *, stream: bool = True) -> dict[str, str | None]:
    lines = [server.put(f"/f{number}.safetensors", body) for number, body in enumerate(FILES)]
    lines[1] += f"#sha256={sha256(FILES[1])}"
    request: dict[str, str | None] = {"loras": "\n".join(lines)}
    if stream:
        request["vaes"] = server.put("/s.safetensors", STREAM, length=False, ranges=False)
    return request


def run(request: dict[str, str | None], out: Path, settings: Settings, stop: threading.Event | None = None) -> Report:
    report = Report()
    options = TransferOptions(connections=4, piece_bytes=PIECE)
    bake(request, out, settings, NO_TOKENS, PlainLines(report), resume=True, options=options, stop=stop)
    return report


def test_killed_at_any_instant(throttled: FaultServer, settings: Settings, tmp_path: Path) -> None:
    throttled.rate = 2_000_000
    request = links(throttled)
    out = tmp_path / "out" / "weights.tar"
    run(request, tmp_path / "whole" / "weights.tar", settings)
    expected = (tmp_path / "whole" / "weights.tar").read_bytes()
    choose = random.Random(3)
    order: dict[str, Any] = {
        "request": request, "out": str(out), "piece_bytes": PIECE, "sync_every_s": 0.02, "told": str(tmp_path / "told")
    }  # fmt: skip
    kills = finished = resumed = 0
    with ForkingProcess() as process:
        began = time.monotonic()
        assert process.run(**order) == 0
        whole_s = time.monotonic() - began
        out.unlink()
        while kills < KILLS or not finished:
            began = time.monotonic()
            status = process.run(kill_after_s=choose.uniform(0, 1.5 * whole_s), **order)
            if status == -signal.SIGKILL:
                kills += 1
                assert not out.exists() or out.read_bytes() == expected
                continue
            assert status == 0, (tmp_path / "told").read_text()
            finished += 1
            # A busy machine is not busy for ever; a bake that went on from another took less.
            whole_s = max(whole_s / 2, time.monotonic() - began)
            assert out.read_bytes() == expected
            assert files_below(out.parent) == [out.name]
            out.unlink()
        assert process.run(**order) == 0
    resumed = (tmp_path / "told").read_text().count("Going on where an earlier bake stopped")
    print(f"{kills} kills, {finished} bakes that came through, {resumed} that went on")
    assert out.read_bytes() == expected
    assert files_below(out.parent) == [out.name]
    assert resumed > KILLS / 4


@contextmanager
def stopped_when(enough: Callable[[], bool]) -> Iterator[threading.Event]:
    """An event that is set once there is `enough`, and at the end of the block."""
    stop = threading.Event()

    def watch() -> None:
        while not (enough() or stop.wait(0.005)):
            pass
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield stop
    finally:
        stop.set()
        watcher.join()


def interrupted(server: FaultServer, settings: Settings, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bake of all files that ends when the server has sent most of the bytes."""
    monkeypatch.setattr(journal, "SYNC_EVERY_S", 0.0)
    with (
        stopped_when(lambda: server.sent >= 800_000) as stop,
        pytest.raises(StoppedError, match="run it again to go on"),
    ):
        run(links(server, stream=False), out, settings, stop)
    server.sent = 0


def known_pieces(out: Path) -> int:
    _, *lines = (out.parent / f".{out.name}.journal").read_text().splitlines()
    return len({tuple(piece) for line in lines for piece in json.loads(line or "[]")})


def test_what_is_there_is_not_asked_for_again(
    throttled: FaultServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "w.tar"
    interrupted(throttled, settings, out, monkeypatch)
    assert files_below(out.parent) == [".w.tar.journal", ".w.tar.part"]
    pieces = known_pieces(out)
    assert pieces > 5
    report = run(links(throttled, stream=False), out, settings)
    assert f"Going on where an earlier bake stopped: {pieces} parts are on the disk already." in report
    assert throttled.sent < sum(map(len, FILES)) - (pieces - 4) * PIECE
    assert files_below(out.parent) == ["w.tar"]
    run(links(throttled, stream=False), tmp_path / "2" / "w.tar", settings)
    assert out.read_bytes() == (tmp_path / "2" / "w.tar").read_bytes()


@pytest.mark.parametrize(
    "change", ["tag", "version", "piece", "no tag", "journal lost", "part lost", "part cut", "forgotten", "order"]
)
def test_a_journal_of_something_else_is_not_used(
    throttled: FaultServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out = tmp_path / "out" / "w.tar"
    interrupted(throttled, settings, out, monkeypatch)
    throttled.rate = None
    request = links(throttled, stream=False)
    log, part = out.parent / ".w.tar.journal", out.parent / ".w.tar.part"
    # What was written before is made useless, so that using it would show.
    part.write_bytes(bytes(part.stat().st_size))
    first, _, rest = log.read_bytes().partition(b"\n")
    match change:
        case "tag":
            for served in throttled.objects.values():
                served.tag = "date"
        case "no tag":
            # The journal is of the plan, but nobody can say that the files are what they were.
            for served in throttled.objects.values():
                served.tag = "none"
            plan = json.loads(first)
            for file in plan["files"]:
                file["validator"] = None
            log.write_bytes(json.dumps(plan).encode() + b"\n" + rest.replace(b"[1, 0]", b"[0, 0]"))
        case "version":
            log.write_bytes(first.replace(b'"version": 1', b'"version": 0') + b"\n" + rest)
        case "piece":
            log.write_bytes(first.replace(str(PIECE).encode(), b"4096") + b"\n" + rest)
        case "journal lost":
            log.unlink()
        case "part lost":
            part.unlink()
        case "part cut":
            os.truncate(part, 10_000)
        case "forgotten":
            log.write_bytes(log.read_bytes() + b"[[0, -1], [1, -1], [2, -1], [3, -1]]\n")
        case "order":
            assert request["loras"]
            request["loras"] = "\n".join(reversed(request["loras"].split("\n")))
    report = run(request, out, settings)
    assert "Going on" not in report.text
    run(request, tmp_path / "2" / "w.tar", settings)
    assert out.read_bytes() == (tmp_path / "2" / "w.tar").read_bytes()
    assert files_below(out.parent) == ["w.tar"]


def test_damage_on_the_disk_heals(
    throttled: FaultServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No SHA-256 is known but the structure is broken: the parts from before are not trusted a second time."""
    out = tmp_path / "out" / "w.tar"
    interrupted(throttled, settings, out, monkeypatch)
    log = (out.parent / ".w.tar.journal").read_text()
    assert "[0, 0]" in log
    with (out.parent / ".w.tar.part").open("r+b") as part:
        part.seek(json.loads(log.partition("\n")[0])["files"][0]["offset"])
        part.write(b"\xff" * 100)
    report = run(links(throttled, stream=False), out, settings)
    assert "Going on" in report.text
    assert any("f0.safetensors begins again" in line for line in report)
    run(links(throttled, stream=False), tmp_path / "2" / "w.tar", settings)
    assert out.read_bytes() == (tmp_path / "2" / "w.tar").read_bytes()


def test_a_version_that_came_and_went_is_not_mixed_in(
    throttled: FaultServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """v1, then v2, then a kill, then v1 again: the journal of v1 must not vouch for what v2 wrote over it."""
    monkeypatch.setattr(journal, "SYNC_EVERY_S", 0.0)
    body, other = safetensors(1, 900_000), safetensors(2, 900_000)
    url = throttled.put("/a.safetensors", body, other, data_faults={5: Fault.CHANGE})
    out = tmp_path / "out" / "w.tar"
    served = throttled.objects["/a.safetensors"]
    with stopped_when(lambda: served.data_requests >= 14) as stop, pytest.raises(StoppedError):
        run({"loras": url}, out, settings, stop)
    assert served.version == 1
    served.version = 0
    throttled.rate = None
    run({"loras": url}, out, settings)
    assert body in out.read_bytes()


def test_two_at_once(throttled: FaultServer, settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "w.tar"
    request = links(throttled)
    throttled.rate = 50_000
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, request, out, settings)
        try:
            # Questions are asked before the lock is taken.
            while not throttled.data_requests("/f0.safetensors"):
                assert not first.done()
                time.sleep(0.005)
            with pytest.raises(
                EngineError, match=r"Another bake is writing w\.tar; wait for it, or choose another name\."
            ):
                run(request, out, settings)
        finally:
            throttled.rate = None
        first.result()
    assert files_below(tmp_path) == ["w.tar"]


def test_a_lock_that_nobody_holds_any_more_is_no_obstacle(server: object, settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "w.tar"
    (tmp_path / ".w.tar.part").write_bytes(b"left over")
    (tmp_path / ".w.tar.journal").write_bytes(b"\x00\xff not JSON\n[[0, 0]]\n")
    with FaultServer() as faults, (tmp_path / ".w.tar.part").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        fcntl.flock(other, fcntl.LOCK_UN)
        run(links(faults), out, settings)
    assert files_below(tmp_path) == ["w.tar"]
