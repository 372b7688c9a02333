"""How many bytes of each job were told of, so that in the end it is as many as the job has; and how many came."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from comfyui.weights.transfer.job import FileJob


class Counts:
    """Hands bytes that have come on to `progress`, and takes back those of a job that failed.

    Safe to use from any thread.
    """

    def __init__(self, progress: Callable[[FileJob, int], None]) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._told: dict[int, int] = {}
        self._received: dict[str, int] = {}
        self._closed = False

    def advance(self, job: FileJob, count: int) -> None:
        """Tell of bytes, unless the job has failed: then all of its bytes have been taken back."""
        with self._lock:
            if self._closed or job.error is not None:
                return
            self._told[id(job)] = self._told.get(id(job), 0) + count
        self._progress(job, count)

    def receive(self, job: FileJob, count: int) -> None:
        """Tell of bytes that came over a connection."""
        server = _server_of(job)
        with self._lock:
            self._received[server] = self._received.get(server, 0) + count
        self.advance(job, count)

    def received(self, job: FileJob) -> int:
        """How many bytes came from the job's server so far, for any job: never fewer than before."""
        with self._lock:
            return self._received.get(_server_of(job), 0)

    def take_back(self, job: FileJob) -> None:
        """What was told of a job that has failed was in vain."""
        with self._lock:
            in_vain = 0 if self._closed else self._told.pop(id(job), 0)
        if in_vain:
            self._progress(job, -in_vain)

    def close(self, jobs: Sequence[FileJob]) -> None:
        """Say no more, and of the jobs that are proven neither more nor less than their bytes.

        A connection that hangs in a piece which another one has brought keeps what it brought of it counted.
        """
        with self._lock:
            self._closed = True
            missing = [(job, job.size - self._told.get(id(job), 0)) for job in jobs if job.digest is not None]
        for job, count in missing:
            if count:
                self._progress(job, count)


def _server_of(job: FileJob) -> str:
    """The host that the files of one tar, and often those of several links, share; "" for this disk."""
    try:
        return urlsplit(job.reader.shown).netloc
    except ValueError:
        return ""
