"""One file from its link into a part of the shelf, proven on the way; what may pass by itself is tried again."""

from __future__ import annotations

import random
from dataclasses import replace
from threading import Event

from comfyui.errors import DownloadError, StoppedError, WeightsError
from comfyui.weights.bring.fetch import reason
from comfyui.weights.disk import MIB, room_errors
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.linked.shelf import Part
from comfyui.weights.listener import Listener
from comfyui.weights.sources import RemoteFile
from comfyui.weights.transfer.faults import InterruptedPieceError, NoRangesError
from comfyui.weights.transfer.job import FileJob, Reader
from comfyui.weights.transfer.pump import TransferOptions, transfer
from comfyui.weights.transfer.readers import RangeReader, RemoteObject, StreamReader, stream_chunks

GROW_BYTES = 256 * MIB
"""The most room that is set aside at a time for a file whose length nobody knows."""


class LinkFetch:
    """Fetches `remote`, whose SHA-256 is to be `sha256` if one is known, into `part`."""

    def __init__(
        self,
        remote: RemoteFile,
        sha256: str | None,
        part: Part,
        opener: HttpOpener,
        options: TransferOptions,
        listener: Listener,
        stop: Event,
    ) -> None:
        self._remote = remote
        self._sha256 = sha256
        self._part = part
        self._opener = opener
        self._options = options
        self._listener = listener
        self._stop = stop
        self._random = random.Random()  # noqa: S311 - jitter, not a secret

    def bring(self) -> Digest:
        """All bytes of the file, proven.

        Raises DownloadError, WeightsError or StorageError for what nothing helps against, ChangedSourceError when the
        link must be asked again, StoppedError once stopped.
        """
        wrong, said = False, "its server gives no ranges"
        for again in range(self._options.policy.restarts + 1):
            wish_s: float | None = None
            try:
                with room_errors(self._part.path.parent, self._remote.name, f"{self._remote.size or 'more'} bytes"):
                    return self._bring_unsized() if self._remote.size is None else self._bring(self._remote.size)
            except NoRangesError:
                self._remote = replace(self._remote, ranges=False)
                continue
            except InterruptedPieceError as error:
                wish_s, said = error.retry_after_s, error.reason
            except WeightsError as error:
                # Damage on the way is rare: a file that is wrong a second time is wrong at its source.
                if self._sha256 is None or wrong:
                    raise self._explained(error) from error
                wrong, said = True, reason(error)
            self._listener.say(f"{self._remote.name} begins again: {said}")
            self._stop.wait(self._options.policy.wait_s(again + 1, wish_s, self._random))
        shown = self._remote.source.display_url
        raise DownloadError(
            f"{self._remote.name} could not be fetched from {shown}: {said}, each time it was tried. Try again later, "
            "or use another link.",
            url=shown,
        )

    def _bring(self, size: int) -> Digest:
        self._part.reserve(size, self._listener.say)
        target = self._part.target
        target.allocate(size)
        expected = Digest(size, self._sha256) if self._sha256 else None
        verifier = Verifier(self._remote.name, allow_pickle=False, expected=expected)
        job = FileJob(self._remote.name, size, self._reader(size), target, 0, verifier)
        transfer(
            [job],
            self._options,
            progress=lambda job, count: self._listener.advance(job.path, count),
            note=self._listener.say,
            stop=self._stop,
        )
        if job.digest is None:
            raise job.error or RuntimeError("a job without a digest and an error")
        return job.digest

    def _bring_unsized(self) -> Digest:
        remote, size = self._remote, 0
        verifier = Verifier(remote.name, allow_pickle=False)
        self._part.target.truncate(0)
        try:
            for chunk in stream_chunks(self._opener, remote.source, remote.url):
                if self._stop.is_set():
                    raise StoppedError("The transfer was stopped; run it again to go on.")
                if size + len(chunk) > self._part.reserved:
                    more = max(len(chunk), min(size, GROW_BYTES))
                    self._part.reserve(size + more, self._listener.say)
                self._part.target.write(size, memoryview(chunk))
                verifier.feed(chunk)
                size += len(chunk)
                self._listener.advance(remote.name, len(chunk))
        except InterruptedPieceError:
            self._listener.advance(remote.name, -size)
            raise
        digest = verifier.finish()
        if self._sha256 not in (None, digest.sha256):
            raise WeightsError("", path=remote.name, expected=self._sha256, seen=digest.sha256)
        return digest

    def _reader(self, size: int) -> Reader:
        remote = self._remote
        first = remote.member.offset if remote.member else 0
        if not remote.ranges:
            return StreamReader(self._opener, remote.source, remote.url, size, first=first)
        known = RemoteObject(remote.source, remote.url, None if remote.member else size, remote.validator)
        return RangeReader(self._opener, known, first=first)

    def _explained(self, error: WeightsError) -> WeightsError:
        if self._sha256 is None or error.expected != self._sha256:
            return error
        return WeightsError(
            f"{self._remote.name} is not the file that was promised: its SHA-256 is {error.seen}, expected "
            f"{self._sha256}. Check the link.",
            path=self._remote.name,
            expected=self._sha256,
            seen=error.seen,
        )
