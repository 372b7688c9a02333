"""A tar of weights where it lies: on a server that gives ranges, on one that gives it only whole, or on this disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from comfyui.errors import DownloadError, RequestError, StoppedError
from comfyui.url_policy import display_url
from comfyui.weights.http.opener import REQUEST_FAILURES, HttpOpener
from comfyui.weights.sources import plain
from comfyui.weights.sources.probe import probe
from comfyui.weights.tar.reader import TarReader
from comfyui.weights.transfer.faults import InterruptedPieceError
from comfyui.weights.transfer.job import Reader
from comfyui.weights.transfer.readers import BUSY, FileReader, RangeReader, RemoteObject, stream_chunks
from comfyui.weights.transfer.retry import RetryPolicy

HEAD_BYTES = 1024**2
"""How much of a tar is fetched at once to find its manifest; most are much shorter."""
STEP_BYTES = 16 * 1024
"""How much is fetched behind the head at first: a few headers. It doubles while nothing is left out."""
MAX_STEP_BYTES = 4 * 1024**2

Result = TypeVar("Result")


class _GivenUpError(DownloadError):
    """What has been tried often enough is not tried again by whoever asked for it."""


@dataclass(frozen=True)
class Patience:
    """How long to go on with small requests, who may end them, and who is told of trouble."""

    policy: RetryPolicy
    stop: Event
    note: Callable[[str], None]
    _random: random.Random = field(default_factory=random.Random)

    def persist(self, shown: str, action: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """What `action` returns, tried again while the network or the server fails in a way that may pass.

        As long as `progress` grows, it is tried for ever. Raises DownloadError when the failure does not pass,
        StoppedError once stopped.
        """
        attempt, before = 0, progress()
        while True:
            try:
                return action()
            except _GivenUpError:
                raise
            except InterruptedPieceError as fault:
                reason, wish_s, error = fault.reason, fault.retry_after_s, fault.__cause__
            except DownloadError as e:
                failed_to_send = isinstance(e.__cause__, (*REQUEST_FAILURES, OSError))
                if e.status not in BUSY and not failed_to_send:
                    raise
                reason = type(e.__cause__).__name__ if failed_to_send else f"the server answered {e.status}"
                wish_s, error = None, e
            attempt, before = 1 if progress() > before else attempt + 1, progress()
            if attempt > self.policy.fruitless_tries:
                raise _GivenUpError(
                    f"{shown} could not be read: {reason}, {attempt} times in a row. Check the link and the network, "
                    "and try again.",
                    url=shown,
                ) from error
            self.note(f"{shown}: {reason}; trying again")
            self.wait(attempt, wish_s)

    def wait(self, attempt: int, wish_s: float | None = None) -> None:
        """Wait before the next attempt. Raises StoppedError once stopped."""
        self.stop.wait(self.policy.wait_s(attempt, wish_s, self._random))
        self.check_stop()

    def check_stop(self) -> None:
        """Raises StoppedError once stopped."""
        if self.stop.is_set():
            raise StoppedError("The restore was stopped; nothing of it is left.")


class RangedTar:
    """A tar any part of which can be read at any time, by several threads. `size` is its length in bytes."""

    def __init__(self, shown: str, size: int, reader: Reader, patience: Patience, *, remote: bool) -> None:
        self.shown = shown
        self.size = size
        self.remote = remote
        """Whether a second look may find other bytes than the first."""
        self._reader = reader
        self._patience = patience
        self._head = b""

    def read_at(self, start: int, length: int) -> bytes:
        """The tar's bytes from `start` on, fewer where it ends."""
        length = max(0, min(length, self.size - start))
        if not self._head and self.size:
            self._head = self._fetch(0, min(HEAD_BYTES, self.size))
        if start + length <= len(self._head):
            return self._head[start : start + length]
        return self._fetch(start, length)

    def part(self, offset: int) -> Reader:
        """The bytes from `offset` on, for a job."""
        return _Part(self._reader, offset)

    def begin(self) -> TarReader:
        """Read it from its beginning; what is skipped is not fetched."""
        return TarReader(_Steps(self), self.shown)

    def _fetch(self, start: int, length: int) -> bytes:
        out = bytearray(length)
        done = 0

        def go_on() -> None:
            nonlocal done
            before = done
            for got in self._reader.read(start + before, memoryview(out)[before:]):
                done = before + got
                self._patience.check_stop()

        if length:
            self._patience.persist(self.shown, go_on, lambda: done)
        return bytes(out)


class StreamTar:
    """A tar that its server gives only whole and in order. `size` is its length in bytes, None if nobody says."""

    def __init__(self, shown: str, size: int | None, chunks: Callable[[], Iterator[bytes]], patience: Patience) -> None:
        self.shown = shown
        self.size = size
        self._chunks = chunks
        self._patience = patience

    def begin(self) -> TarReader:
        """Ask for it, from its beginning; nothing is sent before the first read."""
        return TarReader(self._until_stopped(), self.shown)

    def _until_stopped(self) -> Iterator[bytes]:
        for chunk in self._chunks():
            self._patience.check_stop()
            yield chunk


@contextmanager
def open_tar(
    location: str, opener: HttpOpener, patience: Patience, *, ranges: bool = True
) -> Iterator[RangedTar | StreamTar]:
    """The tar at an http, https or file URL, or a path; without `ranges`, a server's is one stream.

    Raises RequestError for a location that is no file, DownloadError when the server refuses.
    """
    scheme = urlsplit(location).scheme if "://" in location else ""
    if scheme in ("http", "https"):
        yield _on_server(location, opener, patience, ranges=ranges)
        return
    path = _local_path(location, scheme)
    with closing(FileReader(path)) as reader:
        yield RangedTar(path.name, path.stat().st_size, reader, patience, remote=False)


def _on_server(url: str, opener: HttpOpener, patience: Patience, *, ranges: bool) -> RangedTar | StreamTar:
    source = plain(url)
    shown = source.display_url
    found = patience.persist(shown, lambda: probe(source, source.url, opener))
    if not (ranges and found.ranges and found.size is not None):
        return StreamTar(shown, found.size, lambda: stream_chunks(opener, source, source.url), patience)
    reader = RangeReader(opener, RemoteObject(source, source.url, found.size, found.validator))
    return RangedTar(shown, found.size, reader, patience, remote=True)


def _local_path(location: str, scheme: str) -> Path:
    path = Path(location)
    if scheme:
        parts = urlsplit(location)
        if scheme != "file" or parts.netloc not in ("", "localhost"):
            raise RequestError(
                f"The weights at {display_url(location)} cannot be read: give an http, https or file URL, or a path."
            )
        path = Path(unquote(parts.path))
    if not path.is_file():
        raise RequestError(f"There is no weights tar at {path}; give the path or URL of one that training made.")
    return path


class _Part:
    """A reader's bytes from an offset on; one reader serves all members, so that a redirect is followed once."""

    def __init__(self, reader: Reader, offset: int) -> None:
        self._reader = reader
        self._offset = offset
        self.sequential = reader.sequential
        self.shown = reader.shown

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        return self._reader.read(self._offset + start, out)

    def close(self) -> None:
        """Nothing to do: the reader is the tar's."""


class _Steps:
    """A ranged tar as chunks, for TarReader: `seek` leaves out what nobody wants to read."""

    def __init__(self, tar: RangedTar) -> None:
        self._tar = tar
        self._position = 0
        self._step = STEP_BYTES

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self._tar.read_at(self._position, self._step)
        if not chunk:
            raise StopIteration
        self._position += len(chunk)
        self._step = min(2 * self._step, MAX_STEP_BYTES)
        return chunk

    def seek(self, position: int) -> None:
        self._position = position
        self._step = STEP_BYTES
