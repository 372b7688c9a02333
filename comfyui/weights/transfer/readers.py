"""Where the bytes of a file job come from: a server that gives ranges, one that does not, or a file on this disk.

Rules of HTTP that are kept here: RFC 9110, 14 (Range, Content-Range, 206, 416), 13.1.5 (If-Range), 10.2.3
(Retry-After).
"""

from __future__ import annotations

import email.utils
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from comfyui.errors import DownloadError
from comfyui.url_policy import origin
from comfyui.weights.http.answers import validator_of
from comfyui.weights.http.opener import HttpOpener, OpenedResponse
from comfyui.weights.http.refusals import refusal
from comfyui.weights.sources import Source
from comfyui.weights.transfer.body import NETWORK_ERRORS, PORTION_BYTES, fill, portions, skip
from comfyui.weights.transfer.faults import ChangedSourceError, InterruptedPieceError, NoRangesError

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that are worth another try; 4xx other than these are final."""
SIGNATURE_ENDED = frozenset({400, 401, 403, 404, 410})
"""Answers of a storage server to a signed link that was good a while ago: ask the source for a new one."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


@dataclass(frozen=True)
class RemoteObject:
    """What is known of a file on a server before its ranges are asked for.

    `size` is its length in bytes, None where only a part of it is known; `validator` a strong ETag or a Last-Modified
    for If-Range, None if it has neither.
    """

    source: Source
    url: str
    size: int | None
    validator: str | None


class RangeReader:
    """Ranges of one object on a server, `first` bytes into it (for a member of a tar). Safe to use from any thread."""

    sequential = False

    def __init__(self, opener: HttpOpener, remote: RemoteObject, *, first: int = 0) -> None:
        self._opener = opener
        self._remote = remote
        self._first = first
        self._direct_url: str | None = None
        self._version: tuple[str | None, ...] | None = None
        self._lock = threading.Lock()
        self.shown = remote.source.display_url

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        """Fill `out` from byte `start` of the file. Raises as Reader says."""
        begin = self._first + start
        opened = self._ask(begin, begin + len(out) - 1)
        with opened.response as response:
            self._check_range(response, begin, begin + len(out) - 1)
            yield from fill(response, out)

    def close(self) -> None:
        """Nothing is open between two ranges."""

    def _ask(self, begin: int, end: int) -> OpenedResponse:
        """The answer to a range; a redirect is followed once and remembered, until its link ends."""
        headers = {"Range": f"bytes={begin}-{end}"}
        if self._remote.validator:
            headers["If-Range"] = self._remote.validator
        with self._lock:
            direct_url = self._direct_url
        try:
            opened = self._open(direct_url or self._remote.url, headers)
        except InterruptedPieceError:
            # Next time the source may send us to a server that is well.
            self._remember(None)
            raise
        if direct_url and opened.response.status_code in SIGNATURE_ENDED:
            opened.response.close()
            opened = self._open(self._remote.url, headers)
        self._remember(opened.url)
        return opened

    def _remember(self, url: str | None) -> None:
        source = self._remote.source
        if url is not None and source.secret_headers and origin(url) == source.home:
            # A way that leads back home is walked anew each time: the token would go along with a direct request.
            url = None
        with self._lock:
            self._direct_url = url

    def _open(self, url: str, headers: Mapping[str, str]) -> OpenedResponse:
        return open_checked(self._opener, self._remote.source, url, headers)

    def _check_range(self, response: requests.Response, begin: int, end: int) -> None:
        status = response.status_code
        validator = self._remote.validator
        if status == 200:
            # With If-Range this means "it changed", unless the object still is the one we know.
            if validator and validator_of(response.headers) not in (None, validator):
                raise ChangedSourceError("it was replaced at its source")
            raise NoRangesError
        if status == 416:
            raise ChangedSourceError("it became shorter at its source")
        if status != 206:
            raise refusal(self._remote.source, status, response.headers.get("Retry-After"))
        text = response.headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(text.strip())
        if not found or (int(found[1]), int(found[2])) != (begin, end):
            raise InterruptedPieceError(
                f"the server was asked for bytes {begin}-{end} and sent {text[:80] or 'others'}"
            )
        if self._remote.size is not None and found[3] not in ("*", str(self._remote.size)):
            raise ChangedSourceError(f"its length at its source is {found[3]} bytes now, not {self._remote.size}")
        if validator and validator_of(response.headers) not in (None, validator):
            raise ChangedSourceError("it was replaced at its source")
        if not validator:
            self._check_version(response.headers, found[3])
        length = response.headers.get("Content-Length")
        if length is not None and length != str(end - begin + 1):
            raise InterruptedPieceError(f"the server was asked for {end - begin + 1} bytes and announces {length[:40]}")

    def _check_version(self, headers: Mapping[str, str], total: str) -> None:
        """Without a validator nothing can be asked of the server, but its answers can still be compared."""
        seen = (headers.get("ETag"), headers.get("Last-Modified"), total)
        with self._lock:
            first = self._version = self._version or seen
        if seen != first:
            raise ChangedSourceError("it was replaced at its source")


class StreamReader:
    """One object as one stream, for servers that give no ranges; `first` bytes of it are read past.

    One thread, in order, once.
    """

    sequential = True

    def __init__(self, opener: HttpOpener, source: Source, url: str, size: int, *, first: int = 0) -> None:
        self._opener = opener
        self._source = source
        self._url = url
        self._size = size
        self._first = first
        self._response: requests.Response | None = None
        self.shown = source.display_url

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        """Fill `out` with the next bytes; `start` is where the last call ended. Raises as Reader says."""
        if start == 0:
            self._response = open_whole(self._opener, self._source, self._url)
            self._check_length(self._response)
            yield from skip(self._response, self._first)
        if self._response is None:
            raise InterruptedPieceError("the stream is closed")
        yield from fill(self._response, out)
        if start + len(out) == self._size and not self._first:
            self._check_end(self._response)

    def _check_length(self, response: requests.Response) -> None:
        length = response.headers.get("Content-Length")
        if length is not None and not self._first and length != str(self._size):
            raise ChangedSourceError(f"its length at its source is {length[:40]} bytes now, not {self._size}")

    def _check_end(self, response: requests.Response) -> None:
        """A server that does not say how much it sends may send more."""
        try:
            next(fill(response, memoryview(bytearray(1))))
        except InterruptedPieceError:
            return
        raise ChangedSourceError(f"its source sends more than its {self._size} bytes now")

    def close(self) -> None:
        """End the stream; harmless when there is none."""
        if self._response is not None:
            self._response.close()
            self._response = None


class FileReader:
    """A part of a file on this disk, `first` bytes into it. Safe to use from any thread; close it at the end."""

    sequential = False

    def __init__(self, path: Path, *, first: int = 0) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._first = first
        self.shown = path.name

    def read(self, start: int, out: memoryview) -> Iterator[int]:
        """Fill `out` from byte `start`. Raises InterruptedPieceError where the file ends or its disk cannot read it."""
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._fd, [out[done : done + PORTION_BYTES]], self._first + start + done)
            except OSError as error:
                # A bad sector spoils some files of a tar, which may be had from elsewhere.
                raise InterruptedPieceError(error.strerror or str(error)) from error
            if not count:
                raise InterruptedPieceError(f"the file ends at byte {self._first + start + done}")
            done += count
            yield done

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def open_checked(opener: HttpOpener, source: Source, url: str, headers: Mapping[str, str]) -> OpenedResponse:
    """Ask, and turn what may pass by itself (a busy server, a failing network) into InterruptedPieceError."""
    try:
        opened = opener.open(source, url, headers)
    except DownloadError as error:
        # The policy's own refusals are final; a network that failed has its reason behind it.
        if isinstance(error.__cause__, NETWORK_ERRORS):
            raise InterruptedPieceError(type(error.__cause__).__name__) from error
        raise
    status = opened.response.status_code
    if status in BUSY:
        wish_s = retry_after_s(opened.response.headers.get("Retry-After"))
        opened.response.close()
        raise InterruptedPieceError(f"the server answered {status}", retry_after_s=wish_s)
    encoding = opened.response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("", "identity"):
        opened.response.close()
        raise InterruptedPieceError(f"the server sent Content-Encoding {encoding[:40]}, though none was asked for")
    return opened


def open_whole(opener: HttpOpener, source: Source, url: str) -> requests.Response:
    """The answer to a request for all of it, a 200. Raises as `open_checked`, DownloadError for other answers."""
    opened = open_checked(opener, source, url, {})
    response = opened.response
    if response.status_code != 200 or response.headers.get("Content-Type", "").lower().startswith("text/html"):
        response.close()
        raise refusal(source, response.status_code, response.headers.get("Retry-After"))
    return response


def stream_chunks(opener: HttpOpener, source: Source, url: str) -> Iterator[bytes]:
    """All of an object whose length nobody knows. Raises InterruptedPieceError where it breaks off."""
    with open_whole(opener, source, url) as response:
        yield from portions(response)


def retry_after_s(text: str | None) -> float | None:
    """A Retry-After as seconds from now, None if there is none or it makes no sense."""
    if text is None:
        return None
    text = text.strip()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
