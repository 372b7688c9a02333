"""One attempt at one tar: the files that are known by name and size are fetched, proven and laid down.

Files of known size come all at once, each at the place the layout has for it; the others follow one by one.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from comfyui.errors import ComfyUIModelError, DownloadError, StoppedError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.bake.addition import Addition
from comfyui.weights.bake.wanted import Found
from comfyui.weights.disk import room_errors
from comfyui.weights.folders import TRAINING_FOLDERS
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.listener import Listener
from comfyui.weights.manifest import Manifest
from comfyui.weights.sources import RemoteFile
from comfyui.weights.sources.resolve import resolve
from comfyui.weights.tar.archive import ArchiveWriter, unfinished
from comfyui.weights.tar.journal import JournalFile
from comfyui.weights.tar.layout import Place, Planned, plan_layout
from comfyui.weights.transfer.faults import ChangedSourceError, InterruptedPieceError, NoRangesError, PieceFault
from comfyui.weights.transfer.job import FileJob, Reader
from comfyui.weights.transfer.pump import TransferOptions, transfer
from comfyui.weights.transfer.readers import RangeReader, RemoteObject, StreamReader, stream_chunks


class OtherSizeError(Exception):
    """The file `item` has another length than the layout was made for: everything has to be laid out anew."""

    def __init__(self, item: Found) -> None:
        super().__init__()
        self.item = item


class Oven:
    """One attempt at one tar: the layout is fixed, and so are the files' sizes."""

    def __init__(
        self,
        found: Sequence[Found],
        out: Path,
        settings: Settings,
        opener: HttpOpener,
        listener: Listener,
        options: TransferOptions,
        stop: threading.Event,
        addition: Addition | None,
        *,
        allow_pickle: bool,
        resume: bool,
    ) -> None:
        self._sized = [item for item in found if item.remote.size is not None]
        self._unsized = [item for item in found if item.remote.size is None]
        self._out = out
        self._settings = settings
        self._opener = opener
        self._listener = listener
        self._allow_pickle = allow_pickle
        self._resume = resume
        self._options = options
        self._stop = stop
        self._addition = addition
        self._random = random.Random()  # noqa: S311 - jitter, not a secret

    def bake(self) -> Manifest:
        """Fetch, prove and lay down every file. Raises OtherSizeError where the layout cannot hold any more."""
        layout = plan_layout(
            [Planned(item.path, item.remote.manifest_url, item.remote.size or 0) for item in self._sized],
            [
                *((item.wanted.folder, item.remote.manifest_url) for item in self._unsized),
                *((path.partition("/")[0], None) for path in (self._addition.members if self._addition else ())),
            ],
            record_bytes=self._addition.record_bytes if self._addition else 0,
        )
        files = [(item.path, item.remote.size) for item in (*self._sized, *self._unsized)]
        with ArchiveWriter(self._out, layout, keep_unfinished=self._resume) as archive:
            known = archive.prepare(
                [_journal_file(item, place) for item, place in zip(self._sized, layout.places, strict=True)],
                self._options.piece_bytes,
            )
            if pieces := sum(map(len, known.values())):
                self._listener.say(f"Going on where an earlier bake stopped: {pieces} parts are on the disk already.")
            self._listener.begin("baking", files)
            try:
                digests = self._fetch_sized(archive, layout.places, known)
                for item in self._unsized:
                    self._fetch_unsized(archive, item)
            finally:
                self._listener.end()
            if self._addition is None:
                return archive.finish(digests)
            self._add(archive, self._addition, digests)
            return archive.finish(digests, self._addition.record)

    def _add(self, archive: ArchiveWriter, addition: Addition, digests: Sequence[Digest]) -> None:
        made = addition.make(unfinished(self._out), archive.weights(digests), self._stop)
        for path in (member for member in addition.members if member in made):
            if path.partition("/")[0] in TRAINING_FOLDERS:
                archive.append_training(path, made[path])
                continue
            weight = archive.append(path, None, [made[path]], Verifier(path, allow_pickle=False))
            self._listener.proven(path, weight.size, weight.sha256)

    def _fetch_sized(
        self, archive: ArchiveWriter, places: Sequence[Place], known: Mapping[str, frozenset[int]]
    ) -> list[Digest]:
        """All files of known size, at once; those that fail in a way that may pass begin again, a few times."""
        jobs = [
            self._job(archive, number, item, place, on_disk=known.get(item.path, frozenset()))
            for number, (item, place) in enumerate(zip(self._sized, places, strict=True))
        ]
        wrong: set[int] = set()
        for again in range(self._options.policy.restarts + 1):
            with room_errors(self._out.parent, self._out.name, "more bytes"):
                transfer(
                    [job for job in jobs if not job.finished],
                    self._options,
                    progress=lambda job, count: self._listener.advance(job.path, count),
                    note=self._listener.say,
                    stop=self._stop,
                    fatal=self._is_fatal,
                    proven=self._proven,
                )
            failed = [number for number, job in enumerate(jobs) if job.error is not None]
            if not failed:
                break
            wish_s: float | None = None
            for number in failed:
                error = jobs[number].error or RuntimeError("a failed job without an error")
                is_wrong = isinstance(error, WeightsError)
                # Damage on the way is rare: a file that is wrong a second time is wrong at its source.
                if again == self._options.policy.restarts or (is_wrong and number in wrong):
                    raise _given_up(self._sized[number], error)
                if is_wrong:
                    wrong.add(number)
                wish_s = max(wish_s or 0.0, getattr(error, "retry_after_s", None) or 0.0) or None
                jobs[number] = self._again(archive, number, places[number], error)
            self._stop.wait(self._options.policy.wait_s(again + 1, wish_s, self._random))
        return [job.digest for job in jobs if job.digest is not None]

    def _proven(self, job: FileJob) -> None:
        if job.digest is not None:
            self._listener.proven(job.path, job.digest.size, job.digest.sha256)

    def _is_fatal(self, job: FileJob, error: Exception) -> bool:
        """A wrong file of a known digest, or partly of an earlier bake, may be damaged; others are wrong for good."""
        item = next(item for item in self._sized if item.path == job.path)
        may_be_damaged = item.remote.sha256 is not None or bool(job.on_disk)
        return not isinstance(error, PieceFault) and not (isinstance(error, WeightsError) and may_be_damaged)

    def _job(
        self, archive: ArchiveWriter, number: int, item: Found, place: Place, *, on_disk: frozenset[int] = frozenset()
    ) -> FileJob:
        remote = item.remote
        size = place.planned.size
        expected = Digest(size, remote.sha256) if remote.sha256 else None
        return FileJob(
            path=item.path,
            size=size,
            reader=self._reader(remote, size),
            target=archive.target,
            offset=place.offset,
            verifier=Verifier(item.path, allow_pickle=self._allow_pickle, expected=expected),
            on_disk=on_disk,
            written=lambda piece: archive.record(number, piece.index),
        )

    def _reader(self, remote: RemoteFile, size: int) -> Reader:
        first = remote.member.offset if remote.member else 0
        if not remote.ranges:
            return StreamReader(self._opener, remote.source, remote.url, size, first=first)
        return RangeReader(
            self._opener,
            RemoteObject(remote.source, remote.url, None if remote.member else size, remote.validator),
            first=first,
        )

    def _again(self, archive: ArchiveWriter, number: int, place: Place, error: Exception) -> FileJob:
        """A new job for a file that has to begin again, from what its server says now."""
        item = self._sized[number]
        self._listener.say(f"{item.path} begins again: {_reason(error)}")
        if isinstance(error, NoRangesError):
            remote = replace(item.remote, ranges=False)
        elif isinstance(error, ChangedSourceError):
            waits_s = self._options.policy.question_waits_s
            remote = resolve(item.wanted.source, self._settings, opener=self._opener, retry_waits_s=waits_s)
        else:
            remote = item.remote
        if (remote.size, remote.name) != (item.remote.size, item.remote.name):
            raise OtherSizeError(item)
        archive.forget(number)
        self._sized[number] = replace(item, remote=remote)
        return self._job(archive, number, self._sized[number], place)

    def _fetch_unsized(self, archive: ArchiveWriter, item: Found) -> None:
        """A file whose length nobody knows: one stream, begun again from its start when it breaks off."""
        remote = item.remote
        for again in range(self._options.policy.restarts + 1):
            verifier = Verifier(item.path, allow_pickle=self._allow_pickle)
            chunks = self._counted(item.path, stream_chunks(self._opener, remote.source, remote.url))
            try:
                weight = archive.append(item.path, remote.manifest_url, chunks, verifier)
            except InterruptedPieceError as error:
                if again == self._options.policy.restarts:
                    raise _given_up(item, error) from error
                self._listener.say(f"{item.path} begins again: {_reason(error)}")
                self._stop.wait(self._options.policy.wait_s(again + 1, error.retry_after_s, self._random))
                continue
            if remote.sha256 and weight.sha256 != remote.sha256:
                raise WeightsError(
                    f"{item.path} is not the file that was promised: its SHA-256 is {weight.sha256}, expected "
                    f"{remote.sha256}. Check the link.",
                    path=item.path,
                    expected=remote.sha256,
                    seen=weight.sha256,
                )
            self._listener.proven(weight.path, weight.size, weight.sha256)
            return

    def _counted(self, path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        count = 0
        try:
            for chunk in chunks:
                if self._stop.is_set():
                    raise StoppedError("The transfer was stopped; run it again to go on.")
                count += len(chunk)
                self._listener.advance(path, len(chunk))
                yield chunk
        except InterruptedPieceError:
            self._listener.advance(path, -count)
            raise


def _journal_file(item: Found, place: Place) -> JournalFile:
    remote = item.remote
    return JournalFile(
        item.path, remote.manifest_url, place.planned.size, place.offset, remote.validator, remote.sha256
    )


def _reason(error: Exception) -> str:
    match error:
        case NoRangesError():
            return "its server gives it only whole"
        case ChangedSourceError(reason=reason) | InterruptedPieceError(reason=reason):
            return reason
        case _:
            return str(error)


def _given_up(item: Found, error: Exception) -> ComfyUIModelError:
    if isinstance(error, ComfyUIModelError):
        return error
    shown = item.wanted.source.display_url
    return DownloadError(
        f"{item.path} could not be fetched from {shown}: {_reason(error)}, each time it was tried. Try again later, or "
        "use another link.",
        url=shown,
    )
