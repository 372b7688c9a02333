"""Weights straight from the links of their manifest entries: for the image's own, and for what a tar has damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from comfyui.errors import SourceError, TrainingInputError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.bring.fetch import Fetch, Needed
from comfyui.weights.http.at_once import at_once
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.sources import RemoteFile, Tokens, understand
from comfyui.weights.sources.resolve import resolve
from comfyui.weights.transfer.faults import NoRangesError, PieceFault
from comfyui.weights.transfer.job import Reader
from comfyui.weights.transfer.readers import RangeReader, RemoteObject, StreamReader

_INPUTS = {"loras": "loras"}
"""Folders whose training input gives a link a meaning of its own (a tar that holds a LoRA)."""


class _NotOfferedError(WeightsError):
    """The link gives no such file, by what is known before a byte of it comes."""


class LinkSource:
    """Brings files from their links."""

    def __init__(self, settings: Settings, opener: HttpOpener, tokens: Tokens) -> None:
        self._settings = settings
        self._opener = opener
        self._tokens = tokens

    def bring(self, needed: Sequence[Needed], fetch: Fetch, place: str) -> list[Needed]:
        """Bring the files, all at once; returns those that failed, with `place` and the reason among their errors.

        What may pass by itself is tried again, and a file with other bytes once more: they may have changed on the way.
        """
        failed = list(needed)
        for again in range(fetch.options.policy.restarts + 1):
            failed = fetch.bring(failed, place, _lookup(self._readers(failed)))
            worth_it = [file for file in failed if _may_pass(file, again)]
            if not worth_it:
                return [file for file in needed if file.digest is None]
            failed = worth_it
        return [file for file in needed if file.digest is None]

    def _readers(self, files: Sequence[Needed]) -> dict[str, Reader | SourceError]:
        return dict(zip((file.path for file in files), at_once(self._ask, files), strict=True))

    def _ask(self, file: Needed) -> Reader | SourceError:
        """How to read the file at its link, or why it cannot be: the link's answer is another file."""
        if file.url is None:
            return _NotOfferedError("there is none", path=file.path)
        try:
            folder = file.path.partition("/")[0]
            source = understand(file.url, self._settings, self._tokens, input_name=_INPUTS.get(folder))
            remote = resolve(source, self._settings, opener=self._opener)
        except TrainingInputError as error:
            return _NotOfferedError(str(error), path=file.path)
        except SourceError as error:
            return error
        return _other_file(file, remote) or self._reader_of(file, remote)

    def _reader_of(self, file: Needed, remote: RemoteFile) -> Reader:
        if isinstance(file.last_error, NoRangesError):
            remote = replace(remote, ranges=False)
        first = remote.member.offset if remote.member else 0
        if not remote.ranges:
            return StreamReader(self._opener, remote.source, remote.url, file.size, first=first)
        whole_size = None if remote.member else file.size
        known = RemoteObject(remote.source, remote.url, whole_size, remote.validator)
        return RangeReader(self._opener, known, first=first)


def _other_file(file: Needed, remote: RemoteFile) -> _NotOfferedError | None:
    seen, expected = remote.size, file.size
    if seen is not None and seen != expected:
        return _changed(file, remote, f"{expected} bytes", f"{seen} bytes")
    if remote.sha256 is not None and file.sha256 is not None and remote.sha256 != file.sha256:
        return _changed(file, remote, file.sha256, remote.sha256)
    return None


def _changed(file: Needed, remote: RemoteFile, expected: str, seen: str) -> _NotOfferedError:
    return _NotOfferedError(
        f"{file.path} is another file at its link now: {remote.source.display_url} gives {seen}, expected {expected}.",
        path=file.path,
        expected=expected,
        seen=seen,
    )


def _lookup(readers: Mapping[str, Reader | SourceError]) -> Callable[[Needed], Reader]:
    def reader_of(file: Needed) -> Reader:
        found = readers[file.path]
        if isinstance(found, SourceError):
            raise found
        return found

    return reader_of


def _may_pass(file: Needed, again: int) -> bool:
    """Whether to ask the same link again, after `again` repetitions."""
    if isinstance(file.last_error, PieceFault):
        return True
    # Only bytes that came can have been damaged on the way.
    damaged = isinstance(file.last_error, WeightsError) and not isinstance(file.last_error, _NotOfferedError)
    return damaged and not again
