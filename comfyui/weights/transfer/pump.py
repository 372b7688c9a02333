"""Run file jobs with a few workers, each piece tried until it lands, fails for good, or somebody else was faster.

The memory is the buffers'; the order of pieces is the order of the jobs, so what is hashed next is never far away and
a worker that waits for a buffer never waits for one that waits for it: a worker takes its buffer before its piece.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from comfyui.errors import ComfyUIModelError, DownloadError, WeightsError
from comfyui.weights.transfer.buffers import Buffer, BufferPool
from comfyui.weights.transfer.faults import InterruptedPieceError, PieceFault
from comfyui.weights.transfer.job import FileJob, Piece
from comfyui.weights.transfer.retry import RetryPolicy
from comfyui.weights.transfer.target import TargetClosedError, place_in

PIECE_BYTES = 6 * 1024**2
CONNECTIONS = 8
SPARE_BUFFERS = 3
"""Pieces that have landed and wait for an earlier one, beside one in the hands of each worker."""
WATCH_S = 0.1
LEAVE_WORKERS_S = 2.0
MEDIAN_FACTOR = 4.0
"""A piece this many times as old as the median one is worth a second connection."""


class TransferStoppedError(ComfyUIModelError):
    """Somebody asked the transfer to end before it was done."""


@dataclass(frozen=True)
class TransferOptions:
    """How a transfer is run: connections at once, bytes of a piece, patience. `fail_fast`: one failed job ends all."""

    connections: int = CONNECTIONS
    piece_bytes: int = PIECE_BYTES
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    fail_fast: bool = True


def transfer(
    jobs: Sequence[FileJob],
    options: TransferOptions,
    *,
    progress: Callable[[FileJob, int], None] = lambda _job, _bytes: None,
    note: Callable[[str], None] = lambda _line: None,
    stop: threading.Event | None = None,
) -> None:
    """Fetch all jobs; afterwards each has its `digest` or its `error`.

    A PieceFault is always left to the owner of the job, who may begin it again; of the errors, `fail_fast` raises the
    first and ends the others. `progress` gets bytes as they come (negative ones where work was in vain), `note` a line
    for each trouble that was overcome; both from worker threads. Raises TransferStoppedError once `stop` is set, and
    whatever ends the wait (Ctrl-C). Afterwards no worker writes any more.
    """
    pump = _Pump(jobs, options, progress, note, stop or threading.Event())
    pump.run()


class _Pump:
    def __init__(
        self,
        jobs: Sequence[FileJob],
        options: TransferOptions,
        progress: Callable[[FileJob, int], None],
        note: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self._jobs = jobs
        self._options = options
        self._policy = options.policy
        self._progress = progress
        self._note = note
        self._outer_stop = stop
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._queue: deque[tuple[FileJob, Piece]] = deque()
        self._flying: dict[tuple[int, int], tuple[float, FileJob, Piece]] = {}
        self._seconds: deque[float] = deque(maxlen=64)
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self._wake = threading.Event()
        self._pool = BufferPool(options.connections + SPARE_BUFFERS, options.piece_bytes)
        for job in jobs:
            job.cut(options.piece_bytes)
            if not job.pieces:
                try:
                    job.prove()
                except WeightsError as error:
                    self._fail(job, error)
            # A stream is one worker's from its first piece to its last.
            wanted = job.pieces[:1] if job.reader.sequential else job.pieces
            self._queue.extend((job, piece) for piece in wanted)

    def run(self) -> None:
        workers = [
            threading.Thread(target=self._work, name=f"transfer-{number}", daemon=True)
            for number in range(min(self._options.connections, len(self._queue)))
        ]
        for worker in workers:
            worker.start()
        try:
            while not all(job.finished for job in self._jobs):
                if self._outer_stop.is_set():
                    raise TransferStoppedError("The transfer was stopped; run it again to go on.")
                if self._failure is not None:
                    raise self._failure
                self._wake.wait(WATCH_S)
                self._wake.clear()
        finally:
            self._stop.set()
            # Those still waiting for a server are left behind: a closed target refuses what they bring.
            end = time.monotonic() + LEAVE_WORKERS_S
            for worker in workers:
                worker.join(max(0.0, end - time.monotonic()))
            for job in self._jobs:
                if not job.finished:
                    job.fail(TransferStoppedError("The transfer ended before this file was done."))
                job.wait_until_still()

    def _work(self) -> None:
        while (buffer := self._pool.take(self._stop)) is not None:
            loan = _Loan(self._pool, buffer)
            taken = self._next()
            if taken is None:
                loan.end()
                if all(job.finished for job in self._jobs) or self._stop.wait(WATCH_S):
                    return
                continue
            job, piece = taken
            try:
                if job.reader.sequential:
                    self._bring_stream(job, loan)
                else:
                    self._bring(job, piece, loan)
            except TargetClosedError:
                return
            except Exception as error:  # noqa: BLE001 - a worker that died in silence would be waited for for ever
                self._fail(job, error)
            finally:
                loan.end_unless_lent()
                if job.finished:
                    self._wake.set()

    def _next(self) -> tuple[FileJob, Piece] | None:
        """The next piece nobody has, or one that takes another worker suspiciously long."""
        now = time.monotonic()
        with self._lock:
            while self._queue:
                job, piece = self._queue.popleft()
                if job.wants(piece):
                    self._flying[(id(job), piece.index)] = (now, job, piece)
                    return job, piece
            typical = sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else 0.0
            limit = max(self._policy.slow_piece_s, MEDIAN_FACTOR * typical)
            for key, (since, job, piece) in self._flying.items():
                if now - since > limit and not job.reader.sequential and job.wants(piece):
                    # Counted from now on, so that no third worker joins soon.
                    self._flying[key] = (now, job, piece)
                    self._note(f"{job.path}: a connection is slow; its part is fetched over another one too")
                    return job, piece
        return None

    def _bring(self, job: FileJob, piece: Piece, loan: _Loan) -> None:
        """One piece from its source to the disk and the hash."""
        view = place_in(loan.buffer.view, job.offset + piece.start, piece.length)
        start = time.monotonic()
        kept = piece.index in job.on_disk
        if kept:
            job.target.read_into(job.offset + piece.start, view)
            self._progress(job, piece.length)
        elif not self._fill(job, piece, view):
            return
        if not job.claim(piece):
            self._progress(job, -piece.length)
            return
        self._store(job, piece, view, kept=kept)
        with self._lock:
            self._seconds.append(time.monotonic() - start)
            self._flying.pop((id(job), piece.index), None)
        job.land(piece, view, loan.lend())

    def _bring_stream(self, job: FileJob, loan: _Loan) -> None:
        """All pieces of a file that comes as one stream. A stream that breaks off is the job's end."""
        for piece in job.pieces:
            if piece.index:
                buffer = self._pool.take(self._stop)
                if buffer is None:
                    return
                loan.begin(buffer)
            view = place_in(loan.buffer.view, job.offset + piece.start, piece.length)
            count = 0
            for total in job.reader.read(piece.start, view):
                self._progress(job, total - count)
                count = total
                if self._stop.is_set():
                    return
            if count < piece.length:
                raise InterruptedPieceError("it ended early")
            if not job.claim(piece):
                return
            self._store(job, piece, view, kept=False)
            job.land(piece, view, loan.lend())

    def _fill(self, job: FileJob, piece: Piece, view: memoryview) -> bool:
        """Fetch a piece, going on where a connection broke off. False when nobody needs it any more."""
        filled = fruitless = 0
        while True:
            got = 0
            reason, wish_s = "the connection ended early", None
            try:
                for total in job.reader.read(piece.start + filled, view[filled:]):
                    self._progress(job, total - got)
                    got = total
                    if self._stop.is_set() or not job.wants(piece):
                        self._progress(job, -filled - got)
                        return False
            except InterruptedPieceError as fault:
                reason, wish_s = fault.reason, fault.retry_after_s
            filled += got
            if filled == piece.length:
                return True
            fruitless = 1 if got else fruitless + 1
            if fruitless > self._policy.fruitless_tries:
                raise DownloadError(
                    f"{job.path} could not be fetched from {job.reader.shown}: {reason}, {fruitless} times in a row at "
                    f"byte {piece.start + filled} of {job.size}. Check the link and the network, and try again.",
                    url=job.reader.shown,
                )
            if fruitless in (1, self._policy.fruitless_tries):
                self._note(f"{job.path}: {reason}; trying again from byte {piece.start + filled}")
            if self._stop.wait(self._policy.wait_s(fruitless, wish_s, self._random)) or not job.wants(piece):
                self._progress(job, -filled)
                return False

    def _store(self, job: FileJob, piece: Piece, view: memoryview, *, kept: bool) -> None:
        try:
            if not kept:
                job.target.write(job.offset + piece.start, view)
        finally:
            job.stored()
        if not kept:
            job.written(piece)

    def _fail(self, job: FileJob, error: Exception) -> None:
        job.fail(error)
        # A fault ends one job, for its owner to begin again; an error has nothing to begin again for.
        if self._options.fail_fast and not isinstance(error, PieceFault):
            with self._lock:
                self._failure = self._failure or error
            self._stop.set()


class _Loan:
    """A buffer in a worker's hands: given back once, by the worker or by whoever it was lent on to."""

    def __init__(self, pool: BufferPool, buffer: Buffer) -> None:
        self._pool = pool
        self.begin(buffer)

    def begin(self, buffer: Buffer) -> None:
        """Hold another buffer; the one before was lent or given back."""
        self.buffer = buffer
        self._held = True

    def lend(self) -> Callable[[], None]:
        """Hand the buffer on; what is returned gives it back."""
        self._held = False
        buffer = self.buffer
        return lambda: self._pool.give_back(buffer)

    def end(self) -> None:
        """Give the buffer back."""
        self._held = False
        self._pool.give_back(self.buffer)

    def end_unless_lent(self) -> None:
        """Give it back if it is still in the worker's hands."""
        if self._held:
            self.end()
