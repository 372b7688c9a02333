"""Run file jobs with a few workers, each piece tried until it lands, fails for good, or somebody else was faster.

The memory is the buffers'; the order of pieces is the order of the jobs, so what is hashed next is never far away and
a worker that waits for a buffer never waits for one that waits for it: a worker takes its buffer before its piece.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from comfyui.errors import DownloadError, StoppedError, WeightsError
from comfyui.weights.http.opener import READ_TIMEOUT_S
from comfyui.weights.transfer.buffers import PAGE_BYTES, BufferPool, Loan
from comfyui.weights.transfer.counts import Counts
from comfyui.weights.transfer.faults import InterruptedPieceError, PieceFault
from comfyui.weights.transfer.flights import Flight, Flights
from comfyui.weights.transfer.job import FileJob, Piece
from comfyui.weights.transfer.retry import RetryPolicy
from comfyui.weights.transfer.target import TargetClosedError, place_in

PIECE_BYTES = 6 * 1024**2
CONNECTIONS = 8
SPARE_BUFFERS = 3
"""Pieces that have landed and wait for an earlier one, beside one in the hands of each worker."""
RESERVE_BUFFERS = 2
"""For pieces that hang while all that has landed waits for them."""
HASHED_AT_ONCE = 2
"""Files on their way at once: one core hashes slower than a good disk and network deliver."""
WATCH_S = 0.1
LEAVE_WORKERS_S = 0.5


@dataclass(frozen=True)
class TransferOptions:
    """How a transfer is run: connections at once, bytes of a piece (whole pages), patience.

    `fail_fast`: one failed job ends all. `read_timeout_s` is the longest a server may be silent.
    """

    connections: int = CONNECTIONS
    piece_bytes: int = PIECE_BYTES
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    fail_fast: bool = True
    read_timeout_s: float = READ_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.connections < 1 or self.piece_bytes < PAGE_BYTES or self.piece_bytes % PAGE_BYTES:
            raise ValueError(f"connections must be at least 1, and piece_bytes whole pages of {PAGE_BYTES} bytes")


def transfer(
    jobs: Sequence[FileJob],
    options: TransferOptions,
    *,
    progress: Callable[[FileJob, int], None] = lambda _job, _bytes: None,
    note: Callable[[str], None] = lambda _line: None,
    stop: threading.Event | None = None,
    fatal: Callable[[FileJob, Exception], bool] | None = None,
    proven: Callable[[FileJob], None] = lambda _job: None,
) -> None:
    """Fetch all jobs; afterwards each has its `digest` or its `error`.

    `fatal` says which error of a job ends all others and is raised. Unless it is given, `fail_fast` makes every one
    fatal but a PieceFault, which the owner of the job may answer by beginning it again. From worker threads, `progress`
    gets bytes as they come (negative ones where work was in vain), `note` a line for each trouble that was overcome,
    `proven` each job that got its digest. Raises StoppedError once `stop` is set, and whatever ends the wait
    (Ctrl-C). Afterwards no worker writes any more.
    """

    def by_default(_job: FileJob, error: Exception) -> bool:
        return options.fail_fast and not isinstance(error, PieceFault)

    _Pump(jobs, options, progress, note, stop or threading.Event(), fatal or by_default, proven).run()


def in_turn(jobs: Sequence[FileJob], lanes: int) -> Iterator[tuple[FileJob, Piece]]:
    """The pieces of all jobs in the order to fetch them in: from up to `lanes` files in turn, all hashed at once.

    The lanes are about as long as each other, so that all end together. A single one keeps the jobs' order, which those
    that read one stream rely on.
    """
    queues: list[deque[tuple[FileJob, Piece]]] = [deque() for _ in range(lanes)]
    length, taken = [0] * lanes, [0] * lanes
    for job in jobs if lanes == 1 else sorted(jobs, key=lambda job: -job.size):
        lane = length.index(min(length))
        length[lane] += job.size
        # A stream is one worker's from its first piece to its last.
        queues[lane].extend((job, piece) for piece in (job.pieces[:1] if job.reader.sequential else job.pieces))
    while waiting := [lane for lane in range(lanes) if queues[lane]]:
        lane = min(waiting, key=lambda lane: taken[lane] / length[lane])
        job, piece = queues[lane].popleft()
        taken[lane] += job.size if job.reader.sequential else piece.length
        yield job, piece


class _Pump:
    def __init__(
        self,
        jobs: Sequence[FileJob],
        options: TransferOptions,
        progress: Callable[[FileJob, int], None],
        note: Callable[[str], None],
        stop: threading.Event,
        fatal: Callable[[FileJob, Exception], bool],
        proven: Callable[[FileJob], None],
    ) -> None:
        self._jobs = jobs
        self._proven = proven
        self._told: set[int] = set()
        self._fatal = fatal
        self._options = options
        self._policy = options.policy
        self._counts = Counts(progress)
        self._note = note
        self._outer_stop = stop
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._queue: deque[tuple[FileJob, Piece]] = deque()
        self._flights = Flights(options.policy.slow_piece_s)
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self._wake = threading.Event()
        self._pool = BufferPool(options.connections + SPARE_BUFFERS, options.piece_bytes, reserve=RESERVE_BUFFERS)
        for job in jobs:
            job.cut(options.piece_bytes)
            if not job.pieces:
                try:
                    job.prove()
                except WeightsError as error:
                    self._fail(job, error)
                self._tell(job)
        self._queue.extend(in_turn(jobs, min(HASHED_AT_ONCE, options.connections)))

    def run(self) -> None:
        workers: list[threading.Thread] = []
        try:
            # One more than there are pieces: somebody must be free to help with the last one.
            for number in range(min(self._options.connections, len(self._queue) + 1)):
                workers.append(threading.Thread(target=self._work, name=f"transfer-{number}", daemon=True))
                workers[-1].start()
            # A failure first: the job that failed may have been the last one.
            while self._failure is None and not all(job.finished for job in self._jobs):
                if self._outer_stop.is_set():
                    raise StoppedError("The transfer was stopped; run it again to go on.")
                self._wake.wait(WATCH_S)
                self._wake.clear()
        finally:
            self._stop.set()
            # Those still waiting for a server are left behind: a closed target refuses what they bring.
            end = time.monotonic() + LEAVE_WORKERS_S
            for worker in workers:
                if worker.is_alive():
                    worker.join(max(0.0, end - time.monotonic()))
            for job in self._jobs:
                if not job.finished:
                    job.fail(StoppedError("The transfer ended before this file was done."))
                job.wait_until_still()
                self._tell(job)
            self._counts.close(self._jobs)
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and not all(job.finished for job in self._jobs):
                self._work_once()
        except Exception as error:  # noqa: BLE001 - a worker that died in silence would be waited for for ever
            self._end_with(error)
        finally:
            self._wake.set()

    def _work_once(self) -> None:
        """Bring one piece, or see that there is none to bring now."""
        buffer, flight = self._pool.take(WATCH_S), None
        if buffer is not None:
            flight = self._next() or self._help_late()
        elif (buffer := self._pool.take_reserve()) is not None:
            # Everything that was fetched waits for pieces before it.
            flight = self._help_late(awaited_only=True)
        else:
            return
        loan = Loan(self._pool, buffer)
        if flight is None:
            loan.end()
            if not buffer.in_reserve:
                self._stop.wait(WATCH_S)
            return
        job, fetched = flight.job, False
        try:
            fetched = self._bring_stream(job, loan) if job.reader.sequential else self._bring(flight, loan)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the job's end
            # Who comes after the end finds the target closed, which is nobody's news.
            if not (isinstance(error, TargetClosedError) and self._stop.is_set()):
                self._fail(job, error)
        finally:
            loan.end_unless_lent()
            self._flights.end(flight, fetched=fetched)
        if job.finished:
            self._tell(job)
            self._wake.set()

    def _next(self) -> Flight | None:
        """The next piece that nobody has."""
        with self._lock:
            while self._queue:
                job, piece = self._queue.popleft()
                if job.wants(piece):
                    return self._flights.begin(job, piece)
        return None

    def _help_late(self, *, awaited_only: bool = False) -> Flight | None:
        flight = self._flights.help_late(awaited_only=awaited_only)
        if flight is not None:
            self._note(f"{flight.job.path}: a connection is slow; its part is fetched over another one too")
        return flight

    def _bring(self, flight: Flight, loan: Loan) -> bool:
        """One piece from its source to the disk and the hash; whether it was fetched for that."""
        job, piece = flight.job, flight.piece
        view = place_in(loan.buffer.view, job.offset + piece.start, piece.length)
        kept = piece.index in job.on_disk
        if kept:
            job.target.read_into(job.offset + piece.start, view)
            self._counts.advance(job, piece.length)
        elif not self._fill(flight, view):
            return False
        if not job.claim(piece):
            self._counts.advance(job, -piece.length)
            return False
        self._store(job, piece, view, kept=kept)
        job.land(piece, view, loan.lend())
        return not kept

    def _bring_stream(self, job: FileJob, loan: Loan) -> bool:
        """All pieces of a file that comes as one stream. A stream that breaks off is the job's end."""
        position = 0
        try:
            for piece in job.pieces:
                if piece.index and not self._refill(loan):
                    return False
                view = place_in(loan.buffer.view, job.offset + piece.start, piece.length)
                count = 0
                for total in job.reader.read(piece.start, view):
                    self._counts.receive(job, total - count)
                    count = total
                    position = piece.start + count
                    if self._stop.is_set():
                        return False
                if count < piece.length:
                    raise InterruptedPieceError("it ended early")
                if not job.claim(piece):
                    return False
                self._store(job, piece, view, kept=False)
                job.land(piece, view, loan.lend())
        except InterruptedPieceError as fault:
            reason = f"{fault.reason} after {position} of {job.size} bytes"
            raise InterruptedPieceError(reason, retry_after_s=fault.retry_after_s) from fault
        finally:
            job.reader.close()
        return False

    def _refill(self, loan: Loan) -> bool:
        """Another buffer for a stream's next piece; False once the transfer ends."""
        while not self._stop.is_set():
            if (buffer := self._pool.take(WATCH_S)) is not None:
                loan.begin(buffer)
                return True
        return False

    def _fill(self, flight: Flight, view: memoryview) -> bool:
        """Fetch a piece, going on where a connection broke off. False when nobody needs it of this worker any more."""
        job, piece = flight.job, flight.piece
        # A server that allows fewer connections than there are turns some away while it serves the others: a piece is
        # given up only when nothing else comes from there either.
        filled = tries = fruitless = 0
        before = self._counts.received(job)
        while True:
            got = 0
            reason, wish_s = "the connection ended early", None
            refusal: DownloadError | None = None
            try:
                for total in job.reader.read(piece.start + filled, view[filled:]):
                    flight.move()
                    self._counts.receive(job, total - got)
                    got = total
                    if not self._needs(flight):
                        break
            except InterruptedPieceError as fault:
                reason, wish_s = fault.reason, fault.retry_after_s
            except DownloadError as error:
                refusal = error
            except Exception:
                if self._needs(flight):
                    raise
                # Another worker has brought it: what its server says to this one now is nobody's news.
                reason = "nobody needs it"
            filled += got
            if filled == piece.length:
                return True
            now = self._counts.received(job)
            tries = 1 if got else tries + 1
            fruitless, before = 1 if now > before else fruitless + 1, now
            if refusal is None and fruitless > self._policy.fruitless_tries:
                refusal = DownloadError(
                    f"{job.path} could not be fetched from {job.reader.shown}: {reason}, {tries} times in a row at "
                    f"byte {piece.start + filled} of {job.size}. Check the link and the network, and try again.",
                    url=job.reader.shown,
                )
            if refusal is not None:
                if self._needs(flight) and not self._flights.leave(flight):
                    raise refusal
                self._counts.advance(job, -filled)
                return False
            if self._needs(flight) and tries in (1, self._policy.fruitless_tries):
                self._note(f"{job.path}: {reason}; trying again from byte {piece.start + filled}")
            wait_s = self._policy.wait_s(tries, wish_s, self._random)
            flight.rest(wait_s)
            self._stop.wait(wait_s)
            if not self._needs(flight):
                self._counts.advance(job, -filled)
                return False

    def _needs(self, flight: Flight) -> bool:
        return not self._stop.is_set() and flight.job.wants(flight.piece)

    def _store(self, job: FileJob, piece: Piece, view: memoryview, *, kept: bool) -> None:
        try:
            if not kept:
                job.target.write(job.offset + piece.start, view)
        finally:
            job.stored()
        if not kept:
            job.written(piece)

    def _tell(self, job: FileJob) -> None:
        """Once for each job that is proven, whichever worker saw it first."""
        with self._lock:
            news = job.digest is not None and id(job) not in self._told
            self._told.add(id(job))
        if news:
            self._proven(job)

    def _fail(self, job: FileJob, error: Exception) -> None:
        job.fail(error)
        if job.error is not error:
            return
        self._counts.take_back(job)
        if self._fatal(job, error):
            self._end_with(error)

    def _end_with(self, error: Exception) -> None:
        with self._lock:
            self._failure = self._failure or error
        self._stop.set()
