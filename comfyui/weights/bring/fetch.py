"""Bring files into a staging area, each proven; those that fail remember why, for another place to be tried.

Needed ──► reader of a place (tar, source) ──► transfer ──► staging        failed ones ──► the next place
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from threading import Event

from comfyui.errors import SourceError, WeightsError
from comfyui.weights.bring.staging import Staging
from comfyui.weights.disk import room_errors
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.listener import Listener
from comfyui.weights.manifest import Weight
from comfyui.weights.transfer.faults import ChangedSourceError, InterruptedPieceError, NoRangesError, PieceFault
from comfyui.weights.transfer.job import FileJob, Reader
from comfyui.weights.transfer.pump import TransferOptions, transfer

ITS_LINK = "its link"
"""The place that each file has for itself."""
FILES_AT_ONCE = 64
"""Each open file takes two descriptors, and macOS gives a process 256."""


@dataclass(eq=False)
class Needed:
    """A file to be brought. `size` is in bytes; without `sha256` its structure is all that can be checked.

    `offset` is where it begins in the tar, None if it comes from nowhere but `url`. `errors` are the places tried,
    each with what went wrong there.
    """

    path: str
    size: int
    sha256: str | None
    url: str | None
    offset: int | None = None
    digest: Digest | None = None
    errors: list[tuple[str, Exception]] = field(default_factory=list)
    header_fault: str | None = None
    """How the tar's own header differs from what the manifest has there."""
    healed: bool = False
    """Whether it came from its link in the end."""

    @classmethod
    def of(cls, weight: Weight) -> Needed:
        """The file of a manifest's entry."""
        return cls(weight.path, weight.size, weight.sha256, weight.url, weight.offset)

    @property
    def last_error(self) -> Exception | None:
        """What went wrong at the last place tried."""
        return self.errors[-1][1] if self.errors else None

    def weight(self) -> Weight:
        """The manifest's entry of a file that has been brought."""
        if self.digest is None:
            raise ValueError(f"{self.path} is not here yet")
        return Weight(self.path, self.url, self.digest.size, self.digest.sha256, self.offset)


class Fetch:
    """Runs transfers into `staging`."""

    def __init__(
        self, staging: Staging, listener: Listener, options: TransferOptions, stop: Event, *, allow_pickle: bool
    ) -> None:
        self.options = options
        self.stop = stop
        self._staging = staging
        self._listener = listener
        self._allow_pickle = allow_pickle

    def bring(
        self, needed: Iterable[Needed], place: str, reader_of: Callable[[Needed], Reader], *, one_stream: bool = False
    ) -> list[Needed]:
        """Bring the files from `place` (words for people); returns those that failed, each with its error.

        `reader_of` may raise what a reader raises. With `one_stream` the files come one after another, in their order.
        Raises StorageError when this machine is at fault, StoppedError once stopped.
        """
        options = replace(self.options, connections=1) if one_stream else self.options
        files = list(needed)
        failed: list[Needed] = []
        for start in range(0, len(files), FILES_AT_ONCE):
            failed += self._bring(files[start : start + FILES_AT_ONCE], place, reader_of, options)
        return failed

    def _bring(
        self, files: Sequence[Needed], place: str, reader_of: Callable[[Needed], Reader], options: TransferOptions
    ) -> list[Needed]:
        jobs: list[tuple[Needed, FileJob]] = []
        with ExitStack() as stack:
            for file in files:
                try:
                    reader = reader_of(file)
                except (PieceFault, SourceError) as error:
                    file.errors.append((place, error))
                    continue
                target = stack.enter_context(closing(self._staging.open(file.path, file.size)))
                jobs.append((file, FileJob(file.path, file.size, reader, target, 0, self._verifier(file))))
            self._transfer([job for _, job in jobs], options)
            for file, job in jobs:
                self._judge(file, job, place)
        return [file for file in files if file.digest is None]

    def _verifier(self, file: Needed) -> Verifier:
        expected = None if file.sha256 is None else Digest(file.size, file.sha256)
        return _Announcing(file.path, self._listener, allow_pickle=self._allow_pickle, expected=expected)

    def _transfer(self, jobs: Sequence[FileJob], options: TransferOptions) -> None:
        try:
            transfer(
                jobs,
                options,
                progress=lambda job, count: self._listener.advance(job.path, count),
                note=self._listener.say,
                stop=self.stop,
                fatal=lambda _job, error: not isinstance(error, PieceFault | SourceError),
            )
        except OSError as error:
            job = next((job for job in jobs if job.error is error), None)
            if job is None:
                # A callback's, such as of a terminal that is gone: no disk is full.
                raise
            with room_errors(job.target.path.parent, job.path, f"{job.size} bytes"):
                raise
            raise AssertionError("room_errors swallows nothing") from error

    def _judge(self, file: Needed, job: FileJob, place: str) -> None:
        if job.digest is not None:
            with room_errors(job.target.path.parent, file.path, f"{file.size} bytes"):
                job.target.sync()
            file.digest = job.digest
            return
        file.errors.append((place, job.error or RuntimeError("a failed job without an error")))


class _Announcing(Verifier):
    """Tells the listener as soon as a file is proven, not when all are."""

    def __init__(self, path: str, listener: Listener, *, allow_pickle: bool, expected: Digest | None) -> None:
        super().__init__(path, allow_pickle=allow_pickle, expected=expected)
        self._listener = listener

    def finish(self) -> Digest:
        digest = super().finish()
        self._listener.proven(self._path, digest.size, digest.sha256)
        return digest


def reason(error: Exception) -> str:
    """A failure in words, to be quoted in a longer sentence."""
    match error:
        case NoRangesError():
            return "its server gives no ranges any more"
        case ChangedSourceError(reason=text) | InterruptedPieceError(reason=text):
            return text
        case WeightsError(expected=expected, seen=seen) if expected and seen:
            return f"expected {expected}, seen {seen}"
        case _:
            return str(error).rstrip(".")


def given_up(failed: Sequence[Needed]) -> WeightsError:
    """The error for files that could not be had from anywhere; it tells of the first, and names the others."""
    file = failed[0]
    named = {ITS_LINK: f"{ITS_LINK} {file.url}" if file.url else ITS_LINK}
    tried = "; ".join(dict.fromkeys(f"{named.get(place, place)} ({reason(error)})" for place, error in file.errors))
    others = [other.path for other in failed[1:]]
    more = f" So it is with {len(others)} more: {', '.join(others[:10])}." if others else ""
    judged = next((error for _, error in file.errors if isinstance(error, WeightsError)), None)
    header = f" The tar has {file.header_fault} there." if file.header_fault else ""
    return WeightsError(
        f"{file.path} cannot be had right. Tried: {tried or 'nothing'}.{header}{more} "
        "Bake the weights again, or put the right file into the models folder.",
        path=file.path,
        expected=(judged and judged.expected) or _promised(file),
        seen=(judged and judged.seen) or (reason(file.errors[-1][1]) if file.errors else "nothing"),
    )


def _promised(file: Needed) -> str:
    return f"{file.size} bytes" + (f" with SHA-256 {file.sha256}" if file.sha256 else "")
