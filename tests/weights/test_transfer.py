"""The engine: pieces in any order, late, twice, failing, and never more than was asked for."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfyui.errors import DownloadError, StoppedError, WeightsError
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.transfer import pump
from comfyui.weights.transfer.buffers import PAGE_BYTES, BufferPool, Loan
from comfyui.weights.transfer.faults import ChangedSourceError, InterruptedPieceError
from comfyui.weights.transfer.job import FileJob, cut
from comfyui.weights.transfer.pump import TransferOptions, in_turn, transfer
from comfyui.weights.transfer.retry import RetryPolicy
from comfyui.weights.transfer.target import Target
from tests.weights.samples import safetensors, sha256

PIECE = 4 * PAGE_BYTES
POLICY = RetryPolicy(first_wait_s=0.001, longest_wait_s=0.002, fruitless_tries=3, slow_piece_s=0.2)
OPTIONS = TransferOptions(connections=4, piece_bytes=PIECE, policy=POLICY)
PATIENCE_S = 20.0
"""How long what hangs would hang; a test that takes this long has failed."""

Behaviour = Callable[[int, int], None]


class FakeReader:
    """A source in memory; `behave(start, length)` runs before each read: it may wait, or raise."""

    shown = "https://example.com/a.safetensors"

    def __init__(
        self, body: bytes, behave: Behaviour = lambda _s, _l: None, *, sequential: bool = False, portions: int = 2
    ) -> None:
        self.body = body
        self.portions = portions
        self.behave = behave
        self.sequential = sequential
        self.reads: list[int] = []
        self.inside = self.most_inside = self.closed = 0
        self._lock = threading.Lock()

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        with self._lock:
            self.reads.append(start)
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            self.behave(start, len(out))
            half = len(out) // 2 if self.portions == 2 else 0
            out[:half] = self.body[start : start + half]
            if half:
                yield half
            out[half:] = self.body[start + half : start + len(out)]
            yield len(out)
        finally:
            with self._lock:
                self.inside -= 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with closing(Target(tmp_path / "file")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    end = time.monotonic() + PATIENCE_S
    while left := [thread for thread in threading.enumerate() if thread.name.startswith("transfer-")]:
        assert time.monotonic() < end, left
        left[0].join(0.1)


def job(reader: FakeReader, target: Target, *, offset: int = 0, expected: Digest | None = None, **more: Any) -> FileJob:
    verifier = Verifier("loras/a.safetensors", allow_pickle=False, expected=expected)
    return FileJob("loras/a.safetensors", len(reader.body), reader, target, offset, verifier, **more)


class Progress(list[int]):
    """What was told of progress."""

    def __call__(self, _job: FileJob, count: int) -> None:
        self.append(count)


def pieces_of(body: bytes, offset: int = 0) -> list[int]:
    return [piece.start for piece in cut(len(body), offset, PIECE)]


@pytest.mark.parametrize("offset", [0, 1, 512, 1536, 4095, 4096, 10_752])
@pytest.mark.parametrize("size", [4, 3_000, PIECE - 200, 5 * PIECE, 300_001])
def test_any_size_at_any_offset(target: Target, offset: int, size: int) -> None:
    body = safetensors(size, size)
    around = b"\xaa" * (offset + len(body) + 5000)
    target.path.write_bytes(around)
    one, progress = job(FakeReader(body), target, offset=offset), Progress()
    transfer([one], OPTIONS, progress=progress)
    assert one.digest == Digest(len(body), sha256(body))
    assert target.path.read_bytes() == around[:offset] + body + around[offset + len(body) :]
    assert sum(progress) == len(body)
    # All pieces but the first begin on a page, and all but the last end on one.
    assert all((offset + start) % PAGE_BYTES == 0 for start in pieces_of(body, offset)[1:])


def test_many_jobs_in_any_order_of_landing(target: Target) -> None:
    choose = random.Random(5)
    lock = threading.Lock()

    def behave(_start: int, _length: int) -> None:
        with lock:
            wait_s = choose.uniform(0, 0.01)
        time.sleep(wait_s)

    bodies = [safetensors(number, choose.randrange(4, 200_000)) for number in range(9)]
    offsets = [sum(map(len, bodies[:number])) for number in range(9)]
    readers = [FakeReader(body, behave, sequential=number % 3 == 2) for number, body in enumerate(bodies)]
    jobs = [job(reader, target, offset=offset) for reader, offset in zip(readers, offsets, strict=True)]
    proven: list[FileJob] = []
    transfer(jobs, OPTIONS, proven=proven.append)
    assert [one.digest and one.digest.sha256 for one in jobs] == [sha256(body) for body in bodies]
    assert target.path.read_bytes() == b"".join(bodies)
    assert sorted(map(id, proven)) == sorted(map(id, jobs))
    assert [reader.closed for reader in readers] == [int(reader.sequential) for reader in readers]


def test_the_first_piece_last(target: Target) -> None:
    """Everything behind it has landed and is hashed in order all the same."""
    body = safetensors(1, 6 * PIECE)
    others = threading.Semaphore(0)

    def behave(start: int, _length: int) -> None:
        if start:
            others.release()
        else:
            for _ in range(5):
                assert others.acquire(timeout=PATIENCE_S)

    one = job(FakeReader(body, behave), target)
    transfer([one], OPTIONS)
    assert one.digest == Digest(len(body), sha256(body))


@pytest.mark.parametrize("pieces", [1, 3, 60])
def test_a_connection_that_hangs_costs_one_piece(target: Target, pieces: int) -> None:
    """Also when so much lies behind it that every buffer is full: then the reserve is there."""
    body = safetensors(1, (pieces - 1) * PIECE + 2000)
    hung: list[int] = []
    done = threading.Event()

    def behave(start: int, _length: int) -> None:
        if start == 0 and not hung:
            hung.append(start)
            done.wait(PATIENCE_S)
            raise InterruptedPieceError("it never came")

    notes: list[str] = []
    reader, progress = FakeReader(body, behave), Progress()
    one = job(reader, target)
    began = time.monotonic()
    transfer([one], OPTIONS, note=notes.append, progress=progress)
    took = time.monotonic() - began
    done.set()
    assert one.digest == Digest(len(body), sha256(body))
    assert took < PATIENCE_S / 2
    assert sorted(reader.reads) == sorted([0, *pieces_of(body)])
    assert notes == ["loras/a.safetensors: a connection is slow; its part is fetched over another one too"]
    assert sum(progress) == len(body)


def test_a_second_connection_that_hangs_too(target: Target) -> None:
    """The help for the first piece hangs like the first attempt, and the piece behind it hangs as well."""
    body = safetensors(1, 60 * PIECE)
    hung: list[int] = []
    done = threading.Event()

    def behave(start: int, _length: int) -> None:
        if hung.count(start) < {0: 2, PIECE: 1}.get(start, 0):
            hung.append(start)
            done.wait(PATIENCE_S)
            raise InterruptedPieceError("it never came")

    one = job(FakeReader(body, behave), target)
    began = time.monotonic()
    transfer([one], TransferOptions(6, PIECE, POLICY))
    took = time.monotonic() - began
    done.set()
    assert one.digest == Digest(len(body), sha256(body))
    assert took < PATIENCE_S / 2


def test_a_slow_network_is_not_asked_twice(target: Target) -> None:
    """Every piece takes longer than `slow_piece_s`, but bytes come all the time."""
    options = TransferOptions(connections=4, piece_bytes=PIECE, policy=replace(POLICY, slow_piece_s=2.0))
    body = safetensors(1, 2 * PIECE)

    class Slow(FakeReader):
        def read(self, start: int, out: memoryview) -> Iterator[int]:
            self.reads.append(start)
            for done in range(0, len(out), 2048):
                time.sleep(0.3)
                out[done : done + 2048] = self.body[start + done : start + min(done + 2048, len(out))]
                yield min(done + 2048, len(out))

    reader = Slow(body)
    one = job(reader, target)
    transfer([one], options)
    assert one.digest is not None
    assert sorted(reader.reads) == pieces_of(body)


def test_a_slow_connection_among_fast_ones_is_helped(target: Target) -> None:
    body = safetensors(1, 30 * PIECE)
    dripped: list[int] = []

    class Drip(FakeReader):
        def read(self, start: int, out: memoryview) -> Iterator[int]:
            if start == 0 and not dripped:
                dripped.append(start)
                for done in range(0, len(out), 40):
                    out[done : done + 40] = self.body[start + done : start + min(done + 40, len(out))]
                    yield min(done + 40, len(out))
                    time.sleep(0.05)
            else:
                yield from super().read(start, out)

    one, progress = job(Drip(body), target), Progress()
    began = time.monotonic()
    transfer([one], OPTIONS, progress=progress)
    assert one.digest is not None
    assert time.monotonic() - began < PATIENCE_S / 2
    assert sum(progress) == len(body)


@pytest.mark.parametrize("comes_back", [InterruptedPieceError("it never came"), DownloadError("gone", url="u"), None])
def test_who_hung_while_another_brought_its_piece_changes_nothing(
    target: Target, monkeypatch: pytest.MonkeyPatch, comes_back: Exception | None
) -> None:
    """Neither what was told of its bytes, nor, by what its server says to it now, the end of another file."""
    monkeypatch.setattr(pump, "LEAVE_WORKERS_S", 0.01)
    bodies = [safetensors(1, 4 * PIECE), safetensors(2, 2 * PIECE)]
    hung: list[int] = []
    let_go, is_back = threading.Event(), threading.Event()

    class Hanging(FakeReader):
        def read(self, start: int, out: memoryview) -> Iterator[int]:
            if start or hung:
                yield from super().read(start, out)
                return
            hung.append(start)
            out[:1000] = self.body[:1000]
            yield 1000
            let_go.wait(PATIENCE_S)
            is_back.set()
            if comes_back is not None:
                raise comes_back
            yield from super().read(start, out)

    def last(_start: int, _length: int) -> None:
        """The other file's end waits until the first is proven, and the one who hung has said why."""
        if comes_back is not None and proven.wait(PATIENCE_S):
            let_go.set()
            is_back.wait(PATIENCE_S)
            time.sleep(0.1)

    proven = threading.Event()
    jobs = [job(Hanging(bodies[0]), target), job(FakeReader(bodies[1], last), target, offset=10 * PIECE)]
    progress = Progress()
    # Who helps with the other file waits, too.
    options = replace(OPTIONS, connections=8)
    transfer(jobs, options, progress=progress, proven=lambda _job: proven.set())
    told = len(progress)
    assert [one.error for one in jobs] == [None, None]
    assert sum(progress) == sum(map(len, bodies))
    let_go.set()
    assert is_back.wait(PATIENCE_S)
    time.sleep(0.1)
    assert len(progress) == told


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_and_memory_are_bounded(target: Target, connections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[BufferPool] = []

    class Watched(BufferPool):
        def __init__(self, count: int, size: int, *, reserve: int = 0) -> None:
            super().__init__(count, size, reserve=reserve)
            pools.append(self)
            assert (count, size, reserve) == (connections + pump.SPARE_BUFFERS, PIECE, pump.RESERVE_BUFFERS)

    monkeypatch.setattr(pump, "BufferPool", Watched)
    body = safetensors(1, 40 * PIECE)
    reader = FakeReader(body, lambda _s, _l: time.sleep(0.002))
    one = job(reader, target)
    transfer([one], TransferOptions(connections, PIECE, POLICY))
    assert one.digest is not None
    assert reader.most_inside == connections
    # Every buffer came home, once.
    assert pools[0]._free.qsize() == connections + pump.SPARE_BUFFERS
    assert pools[0]._reserve.qsize() == pump.RESERVE_BUFFERS


def test_what_broke_off_goes_on_where_it_was(target: Target) -> None:
    body = safetensors(1, PIECE - 500)

    class Breaks(FakeReader):
        def read(self, start: int, out: memoryview) -> Iterator[int]:
            self.reads.append(start)
            out[:1000] = self.body[start : start + min(1000, len(out))]
            yield min(1000, len(out))
            if len(out) > 1000:
                raise InterruptedPieceError("cut")

    notes: list[str] = []
    reader, progress = Breaks(body), Progress()
    one = job(reader, target)
    transfer([one], OPTIONS, progress=progress, note=notes.append)
    assert one.digest == Digest(len(body), sha256(body))
    assert reader.reads == list(range(0, len(body), 1000))
    assert sum(progress) == len(body)
    assert notes[0] == "loras/a.safetensors: cut; trying again from byte 1000"


def test_a_piece_that_never_comes(target: Target) -> None:
    body = safetensors(1, PIECE - 500)

    def behave(_start: int, _length: int) -> None:
        raise InterruptedPieceError("the server answered 503")

    reader = FakeReader(body, behave)
    with pytest.raises(DownloadError) as caught:
        transfer([job(reader, target)], replace(OPTIONS, policy=replace(POLICY, slow_piece_s=PATIENCE_S)))
    assert str(caught.value) == (
        "loras/a.safetensors could not be fetched from https://example.com/a.safetensors: the server answered 503, "
        f"4 times in a row at byte 0 of {len(body)}. Check the link and the network, and try again."
    )
    assert reader.reads == [0] * 4


def test_a_server_s_wish_is_followed_within_bounds(target: Target) -> None:
    policy = RetryPolicy(first_wait_s=0.1, longest_wish_s=0.3)
    rolls = random.Random(0)
    assert policy.wait_s(1, 0.2, rolls) == 0.2
    assert policy.wait_s(1, 1000.0, rolls) == 0.3
    waits = [RetryPolicy().wait_s(attempt, None, rolls) for attempt in range(1, 40) for _ in range(50)]
    assert max(waits) <= 20.0
    assert len(set(waits)) > 1000
    assert all(RetryPolicy().wait_s(1, None, rolls) <= 0.5 for _ in range(100))


@pytest.mark.parametrize("wish_s", [0.0, -5.0, 0.001])
def test_a_wish_for_no_wait_is_waited_for_as_without_it(wish_s: float) -> None:
    for attempt in range(1, 20):
        without = RetryPolicy().wait_s(attempt, None, random.Random(attempt))
        assert RetryPolicy().wait_s(attempt, wish_s, random.Random(attempt)) == without > 0.001


def test_a_wish_is_waited_for(target: Target) -> None:
    asked: list[float] = []

    def behave(_start: int, _length: int) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise InterruptedPieceError("the server answered 429", retry_after_s=0.3)

    transfer([job(FakeReader(safetensors(1, 100), behave), target)], OPTIONS)
    assert asked[1] - asked[0] >= 0.3


def test_a_fatal_error_of_the_only_job_is_raised(target: Target) -> None:
    body = safetensors(1, 5000)
    for error in (DownloadError("no", url="u", status=404), RuntimeError("a bug"), OSError("disk")):

        def behave(_start: int, _length: int, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            transfer([job(FakeReader(body, behave), target)], OPTIONS)
        assert caught.value is error


def test_an_empty_file_that_may_not_be_empty(target: Target) -> None:
    with pytest.raises(WeightsError, match="an empty file"):
        transfer([job(FakeReader(b""), target)], OPTIONS)


def test_a_wrong_file_stops_the_others(target: Target) -> None:
    wrong = safetensors(2, 500)
    slow = FakeReader(safetensors(1, 90 * PIECE), lambda _s, _l: time.sleep(0.01))
    with pytest.raises(WeightsError, match="is damaged"):
        transfer(
            [job(FakeReader(wrong), target, expected=Digest(len(wrong), "0" * 64)), job(slow, target, offset=8192)],
            OPTIONS,
        )
    assert len(slow.reads) < 60


def test_a_fault_is_its_own_job_s_alone(target: Target) -> None:
    good, bad = safetensors(1, 6 * PIECE), safetensors(2, 6 * PIECE)

    def behave(start: int, _length: int) -> None:
        if start == 3 * PIECE:
            raise ChangedSourceError("it was replaced at its source")

    progress: dict[int, int] = {}

    def told(one: FileJob, count: int) -> None:
        progress[id(one)] = progress.get(id(one), 0) + count

    jobs = [job(FakeReader(bad, behave), target), job(FakeReader(good), target, offset=8 * PIECE)]
    transfer(jobs, OPTIONS, progress=told)
    assert isinstance(jobs[0].error, ChangedSourceError)
    assert jobs[1].digest == Digest(len(good), sha256(good))
    # What was told of the failed one was taken back.
    assert [progress[id(one)] for one in jobs] == [0, len(good)]


@pytest.mark.parametrize("callback", ["progress", "note", "proven", "written", "fatal"])
def test_a_callback_that_fails_ends_it_all(target: Target, callback: str) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("the terminal is gone")

    troubles: list[int] = []

    def behave(start: int, _length: int) -> None:
        if start == PIECE and not troubles:
            troubles.append(start)
            raise InterruptedPieceError("cut")
        if start == 2 * PIECE and callback == "fatal":
            raise ChangedSourceError("other")

    body = safetensors(1, 30 * PIECE)
    more: dict[str, Any] = {"written": fail} if callback == "written" else {}
    callbacks: dict[str, Any] = {} if more else {callback: fail}
    one = job(FakeReader(body, behave), target, **more)
    with pytest.raises(RuntimeError, match="the terminal is gone"):
        transfer([one], OPTIONS, **callbacks)


def test_stop(target: Target) -> None:
    stop = threading.Event()
    reads: list[int] = []

    def behave(start: int, _length: int) -> None:
        reads.append(start)
        if len(reads) == 10:
            stop.set()
        time.sleep(0.005)

    one = job(FakeReader(safetensors(1, 200 * PIECE), behave), target)
    with pytest.raises(StoppedError, match="run it again to go on"):
        transfer([one], OPTIONS, stop=stop)
    assert isinstance(one.error, StoppedError)
    assert len(reads) < 200


def test_stop_ends_a_long_wait(target: Target) -> None:
    stop = threading.Event()

    def behave(_start: int, _length: int) -> None:
        stop.set()
        raise InterruptedPieceError("busy", retry_after_s=100.0)

    began = time.monotonic()
    with pytest.raises(StoppedError):
        transfer(
            [job(FakeReader(safetensors(1, 9)), target), job(FakeReader(safetensors(1, 9), behave), target)],
            OPTIONS,
            stop=stop,
        )
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5, 6, 20])
def test_ctrl_c_leaves_nobody_writing(target: Target, ctrl_c: Callable[[], None], at: int) -> None:
    """Also while the workers are being started."""
    number = itertools.count()

    def behave(_start: int, _length: int) -> None:
        if next(number) == at:
            ctrl_c()
        time.sleep(0.005)

    body = safetensors(1, 300 * PIECE)
    one = job(FakeReader(body, behave), target)
    with pytest.raises(KeyboardInterrupt):
        transfer([one], OPTIONS)
    before = hashlib.sha256(target.path.read_bytes()).digest()
    assert isinstance(one.error, StoppedError)
    time.sleep(0.1)
    assert hashlib.sha256(target.path.read_bytes()).digest() == before


@pytest.mark.parametrize("portions", [1, 2])
def test_who_comes_too_late_does_not_write(target: Target, monkeypatch: pytest.MonkeyPatch, portions: int) -> None:
    """A worker that hangs in its source when the transfer ends, and comes back afterwards with bytes."""
    monkeypatch.setattr(pump, "LEAVE_WORKERS_S", 0.01)
    told: list[str] = []
    hang = threading.Event()
    body = safetensors(1, 2 * PIECE)

    def behave(start: int, _length: int) -> None:
        if start == 0:
            hang.wait(PATIENCE_S)
        else:
            raise DownloadError("gone", url="u")

    with pytest.raises(DownloadError, match="gone"):
        transfer(
            [job(FakeReader(body, behave, portions=portions), target)],
            OPTIONS,
            note=told.append,
            progress=lambda _j, c: told.append(str(c)),
        )
    count = len(told)
    hang.set()
    for thread in threading.enumerate():
        if thread.name.startswith("transfer-"):
            thread.join(PATIENCE_S)
    assert target.path.read_bytes() == b""
    assert told[count:] == []


def test_pieces_on_the_disk_are_read_back(target: Target) -> None:
    body = safetensors(1, 9 * PIECE)
    offset = 1536
    target.path.write_bytes(bytes(offset) + body)
    reader, progress = FakeReader(body), Progress()
    fetched: list[int] = []
    one = job(
        reader,
        target,
        offset=offset,
        on_disk=frozenset({0, 3, 4, 9}),
        written=lambda piece: fetched.append(piece.index),
    )
    transfer([one], OPTIONS, progress=progress)
    assert one.digest == Digest(len(body), sha256(body))
    assert sorted(fetched) == [1, 2, 5, 6, 7, 8]
    assert sorted(reader.reads) == [pieces_of(body, offset)[index] for index in (1, 2, 5, 6, 7, 8)]
    assert sum(progress) == len(body)


def test_written_is_told_after_the_bytes_are_there(target: Target) -> None:
    body = safetensors(1, 9 * PIECE)
    seen: list[bool] = []

    def written(piece: object) -> None:
        start, length = piece.start, piece.length  # type: ignore[attr-defined]
        back = bytearray(length)
        target.read_into(start, memoryview(back))
        seen.append(back == body[start : start + length])

    transfer([job(FakeReader(body), target, written=written)], OPTIONS)
    assert seen == [True] * len(pieces_of(body))


def test_a_stream_that_breaks_off_is_the_job_s_end(target: Target) -> None:
    body = safetensors(1, 4 * PIECE)

    def behave(start: int, _length: int) -> None:
        if start == 2 * PIECE:
            raise InterruptedPieceError("cut")

    reader = FakeReader(body, behave, sequential=True)
    progress = Progress()
    one = job(reader, target)
    transfer([one], OPTIONS, progress=progress)
    assert isinstance(one.error, InterruptedPieceError)
    assert reader.reads == [0, PIECE, 2 * PIECE]
    assert reader.closed == 1
    assert sum(progress) == 0


@pytest.mark.parametrize("piece_bytes", [0, 1000, 4095, 6000])
def test_pieces_are_whole_pages(piece_bytes: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        TransferOptions(piece_bytes=piece_bytes)
    with pytest.raises(ValueError, match="at least 1"):
        TransferOptions(connections=0)


def test_a_buffer_is_given_back_once() -> None:
    pool = BufferPool(2, 100, reserve=1)
    first, second, third = pool.take(0.01), pool.take(0.01), pool.take_reserve()
    assert first is not None
    assert second is not None
    assert third is not None
    assert pool.take(0.01) is None
    assert pool.take_reserve() is None
    loan = Loan(pool, third)
    release = loan.lend()
    loan.end_unless_lent()
    assert pool.take_reserve() is None
    release()
    assert pool.take(0.01) is None
    assert pool.take_reserve() is third
    loan = Loan(pool, first)
    loan.end_unless_lent()
    loan.end_unless_lent()
    assert pool.take(0.01) is first
    assert pool.take(0.01) is None


def test_claims(target: Target) -> None:
    """Of all who bring a piece one writes it; a failed job has no claims; whoever waits for writers waits for all."""
    one = job(FakeReader(safetensors(1, 3 * PIECE)), target)
    one.cut(PIECE)
    first, second, *_ = one.pieces
    assert one.wants(first)
    assert one.claim(first)
    assert not one.claim(first)
    assert not one.wants(first)
    assert one.awaits(first)
    assert not one.awaits(second)
    waiter = threading.Thread(target=one.wait_until_still)
    waiter.start()
    one.fail(RuntimeError("first"))
    one.fail(RuntimeError("second"))
    assert str(one.error) == "first"
    assert not one.claim(second)
    assert waiter.is_alive()
    one.stored()
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()
    released: list[str] = []
    one.land(second, memoryview(b""), lambda: released.append("at once"))
    assert released == ["at once"]


def test_what_waits_to_be_hashed_is_let_go_on_failure(target: Target) -> None:
    one = job(FakeReader(safetensors(1, 3 * PIECE)), target)
    one.cut(PIECE)
    released: list[int] = []
    for piece in one.pieces[1:3]:
        one.land(piece, memoryview(b""), lambda index=piece.index: released.append(index))  # type: ignore[misc]
    assert released == []
    one.fail(RuntimeError("no"))
    assert sorted(released) == [1, 2]


def test_pieces_come_from_two_files_in_turn_and_all_lanes_end_together(target: Target) -> None:
    pages = {"a": 10, "b": 100, "c": 90}
    jobs = []
    for name, count in pages.items():
        path = f"loras/{name}.safetensors"
        verifier = Verifier(path, allow_pickle=False)
        jobs.append(FileJob(path, count * PAGE_BYTES, FakeReader(b""), target, 0, verifier))
        jobs[-1].cut(PAGE_BYTES)
    order = [(job.path[6], piece.index) for job, piece in in_turn(jobs, 2)]
    for name, count in pages.items():
        assert [index for other, index in order if other == name] == list(range(count))
    assert len(order) == sum(pages.values())
    assert {name for name, _ in order[:4]} == {"b", "c"}
    assert {name for name, _ in order[-4:]} == {"b", "a"}


def test_one_connection_takes_the_jobs_in_their_order(target: Target) -> None:
    """Files of a tar that comes as one stream can be had in no other."""
    began: list[int] = []
    bodies = [safetensors(number, size) for number, size in enumerate((1000, 90_000, 20_000, 4))]

    def behaviour(number: int) -> Behaviour:
        return lambda start, _length: began.append(number) if start == 0 else None

    jobs = [
        job(FakeReader(body, behaviour(number), sequential=True), target, offset=number * 100_000)
        for number, body in enumerate(bodies)
    ]
    transfer(jobs, TransferOptions(1, PIECE, POLICY))
    assert began == [0, 1, 2, 3]
