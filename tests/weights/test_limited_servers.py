"""A server that serves some connections and turns others away: no file fails while its bytes flow."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from comfyui.errors import DownloadError
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.transfer.buffers import PAGE_BYTES
from comfyui.weights.transfer.faults import InterruptedPieceError
from comfyui.weights.transfer.flights import Flights
from comfyui.weights.transfer.job import FileJob, Piece
from comfyui.weights.transfer.pump import TransferOptions, transfer
from comfyui.weights.transfer.retry import RetryPolicy
from comfyui.weights.transfer.target import Target
from tests.weights.samples import safetensors, sha256

PIECE = 4 * PAGE_BYTES
POLICY = RetryPolicy(first_wait_s=0.001, longest_wait_s=0.002, fruitless_tries=3, slow_piece_s=0.2)
OPTIONS = TransferOptions(connections=4, piece_bytes=PIECE, policy=POLICY)
PATIENCE_S = 20.0
"""How long what hangs would hang; a test that takes this long has failed."""
REFUSED = DownloadError("not found", url="u", status=404)
BUSY = InterruptedPieceError("the server answered 503")


class Slot:
    """The one connection that a server allows, for all of its files; `flowed` counts the portions that it gave."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.taken = False
        self.flowed = self.waiting = 0

    def take(self, first_for_others: int) -> None:
        """Have it, or be turned away once bytes have come to somebody else."""
        with self.changed:
            before = self.flowed
            self.waiting += 1
            self.changed.notify_all()
            is_free = before >= first_for_others
            self.changed.wait_for(lambda: self.flowed > before or (is_free and not self.taken), PATIENCE_S)
            if self.flowed > before:
                raise BUSY
            self.taken = True

    def give(self) -> None:
        with self.changed:
            self.taken = False
            self.changed.notify_all()

    def flow(self) -> None:
        """A portion has been given; the next one comes when somebody is there to be turned away, or nobody is left."""
        with self.changed:
            self.flowed += 1
            # Who waits now is turned away.
            self.waiting = 0
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.waiting, 0.05)


class OneConnection:
    """A file on a server that serves one reader at a time, and this file after so many portions of others."""

    sequential = False

    def __init__(self, body: bytes, slot: Slot, *, name: str = "a", first_for_others: int = 0) -> None:
        self.body = body
        self.shown = f"https://example.com/{name}.safetensors"
        self.slot = slot
        self.first_for_others = first_for_others

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        self.slot.take(self.first_for_others)
        try:
            portion = max(1, len(out) // 8)
            for done in range(0, len(out), portion):
                end = min(done + portion, len(out))
                out[done:end] = self.body[start + done : start + end]
                yield end
                self.slot.flow()
        finally:
            self.slot.give()

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with closing(Target(tmp_path / "file")) as opened:
        yield opened


def job(reader: OneConnection | Helped, target: Target, *, offset: int = 0) -> FileJob:
    verifier = Verifier("loras/a.safetensors", allow_pickle=False)
    return FileJob("loras/a.safetensors", len(reader.body), reader, target, offset, verifier)


def test_a_server_that_allows_one_connection_is_not_given_up(target: Target) -> None:
    body = safetensors(1, 12 * PIECE)
    one = job(OneConnection(body, Slot()), target)
    transfer([one], OPTIONS)
    assert one.digest == Digest(len(body), sha256(body))


def test_nor_when_the_connection_is_another_file_s(target: Target) -> None:
    bodies = [safetensors(1, 12 * PIECE), safetensors(2, PIECE - 500)]
    slot = Slot()
    first, second = OneConnection(bodies[0], slot), OneConnection(bodies[1], slot, name="b", first_for_others=80)
    jobs = [job(first, target), job(second, target, offset=20 * PIECE)]
    transfer(jobs, OPTIONS)
    assert [one.digest for one in jobs] == [Digest(len(body), sha256(body)) for body in bodies]


class Helped:
    """A file of one piece: the first connection halts after half of it, until who helps has half, and is refused."""

    sequential = False
    shown = "https://example.com/a.safetensors"

    def __init__(self, body: bytes, at_last: Exception | None) -> None:
        self.body = body
        self.at_last = at_last
        self.asked = itertools.count()
        self.refused = threading.Event()

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        helps = next(self.asked) > 0
        half = len(out) // 2
        out[:half] = self.body[start : start + half]
        yield half
        if helps:
            self.refused.set()
            raise REFUSED
        assert self.refused.wait(PATIENCE_S)
        if self.at_last is not None:
            raise self.at_last
        out[half:] = self.body[start + half : start + len(out)]
        yield len(out)

    def close(self) -> None:
        """Nothing is open."""


def test_the_refusal_of_who_helps_is_not_the_end_of_who_is_helped(target: Target) -> None:
    body = safetensors(1, PIECE - 500)
    told: list[int] = []
    one = job(Helped(body, None), target)
    transfer([one], OPTIONS, progress=lambda _job, count: told.append(count))
    assert one.digest == Digest(len(body), sha256(body))
    # What the one who helped had brought was taken back, and not only at the end.
    assert min(told) < 0
    assert sum(told) == len(body)


def test_the_last_one_who_is_refused_ends_the_file(target: Target) -> None:
    with pytest.raises(DownloadError) as caught:
        transfer([job(Helped(safetensors(1, PIECE - 500), REFUSED), target)], OPTIONS)
    assert caught.value is REFUSED


def test_of_two_who_leave_a_piece_one_stays(target: Target) -> None:
    flights = Flights(0.2)
    one = job(OneConnection(b"", Slot()), target)
    first, second, other = (flights.begin(one, Piece(index, 10 * index, 10)) for index in (0, 0, 1))
    assert flights.leave(first)
    assert not flights.leave(second)
    assert not flights.leave(other)
    flights.end(first)
