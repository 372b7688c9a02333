"""How many bytes of each job were told of, so that in the end it is as many as the job has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from comfyui.weights.transfer.job import FileJob


class Counts:
    """Hands bytes that have come on to `progress`, and takes back those of a job that failed.

    Safe to use from any thread.
    """

    def __init__(self, progress: Callable[[FileJob, int], None]) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._told: dict[int, int] = {}
        self._closed = False

    def advance(self, job: FileJob, count: int) -> None:
        """Tell of bytes, unless the job has failed: then all of its bytes have been taken back."""
        with self._lock:
            if self._closed or job.error is not None:
                return
            self._told[id(job)] = self._told.get(id(job), 0) + count
        self._progress(job, count)

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
