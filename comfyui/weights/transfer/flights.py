"""Which pieces are in whose hands, and which of them have been there too long. Safe to use from any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from comfyui.weights.transfer.job import FileJob, Piece

MEDIAN_FACTOR = 4.0
"""A piece that takes this many times as long for each byte as the median one is worth a second connection."""


@dataclass(eq=False)
class Flight:
    """One worker's attempt to bring one piece: begun at `since`, last bytes at `moved` (both of the monotonic clock).

    `helped` says that another worker tries it too.
    """

    job: FileJob
    piece: Piece
    since: float
    moved: float
    helped: bool = False

    def move(self) -> None:
        """Bytes have come."""
        self.moved = time.monotonic()

    def rest(self, seconds: float) -> None:
        """It waits on purpose, because its server asked for it or failed: nobody else may ask meanwhile."""
        self.since += seconds
        self.moved = time.monotonic() + seconds


class Flights:
    """All flights of a transfer. One without bytes for `slow_piece_s` is late, and so is one far slower than others.

    Slowness alone is judged against the others', once some have landed: on a slow network every piece takes long, and
    fetching them twice would make it slower still.
    """

    def __init__(self, slow_piece_s: float) -> None:
        self._slow_piece_s = slow_piece_s
        self._lock = threading.Lock()
        self._flying: dict[int, Flight] = {}
        self._seconds_per_byte: deque[float] = deque(maxlen=64)

    def begin(self, job: FileJob, piece: Piece) -> Flight:
        """A worker sets out for a piece."""
        now = time.monotonic()
        flight = Flight(job, piece, now, now)
        with self._lock:
            self._flying[id(flight)] = flight
        return flight

    def end(self, flight: Flight, *, fetched: bool = False) -> None:
        """It is over, well (`fetched` over a network or from a disk, and written) or not."""
        with self._lock:
            self._flying.pop(id(flight), None)
            if fetched:
                self._seconds_per_byte.append((time.monotonic() - flight.since) / flight.piece.length)

    def leave(self, flight: Flight) -> bool:
        """End it if another worker tries its piece too, and say whether that is so: of several the last one stays."""
        with self._lock:
            others = [other for other in self._flying.values() if other is not flight and other.job is flight.job]
            if not any(other.piece == flight.piece for other in others):
                return False
            self._flying.pop(id(flight), None)
            return True

    def help_late(self, *, awaited_only: bool = False) -> Flight | None:
        """A second flight for a late piece, None if there is none; with `awaited_only` one that a hash waits for."""
        now = time.monotonic()
        with self._lock:
            paces = sorted(self._seconds_per_byte)
            pace = paces[len(paces) // 2] if paces else float("inf")
            late = next(
                (
                    flight
                    for flight in self._flying.values()
                    if self._is_late(flight, now, pace)
                    and not flight.helped
                    and not flight.job.reader.sequential
                    and flight.job.wants(flight.piece)
                    and (not awaited_only or flight.job.awaits(flight.piece))
                ),
                None,
            )
            if late is None:
                return None
            late.helped = True
        return self.begin(late.job, late.piece)

    def _is_late(self, flight: Flight, now: float, pace: float) -> bool:
        limit_s = max(self._slow_piece_s, MEDIAN_FACTOR * pace * flight.piece.length)
        return now - flight.moved > self._slow_piece_s or now - flight.since > limit_s
