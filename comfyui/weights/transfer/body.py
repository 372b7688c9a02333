"""The body of an answer, in portions: large from a fast server, and what there is of them from a slow one."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from typing import Any

import requests
import urllib3

from comfyui.weights.transfer.faults import InterruptedPieceError

PORTION_BYTES = 128 * 1024
"""How much is read before anybody may ask to stop."""
PORTION_S = 0.2
"""How long a portion may grow: then what there is of it is handed on, once it is any."""
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


def portions(response: requests.Response) -> Iterator[bytes]:
    """All of a body whose length nobody knows. Raises InterruptedPieceError where it breaks off."""
    raw: Any = response.raw
    at_end, fault = False, None
    while not at_end:
        portion, end = bytearray(), time.monotonic() + PORTION_S
        while not at_end and len(portion) < PORTION_BYTES and (not portion or time.monotonic() < end):
            try:
                # Not `read`: that returns when it has all of it, however long a server takes.
                data = raw.read1(PORTION_BYTES - len(portion), decode_content=False)
            except NETWORK_ERRORS as error:
                data, fault = b"", _broken(error)
            portion += data
            at_end = not data
        if portion:
            yield bytes(portion)
    if fault is not None:
        raise fault


def skip(response: requests.Response, count: int) -> Iterator[int]:
    """Read past `count` bytes of the body, yielding 0 after each portion."""
    scrap = memoryview(bytearray(min(count, PORTION_BYTES)))
    while count:
        part = scrap[: min(count, len(scrap))]
        for _ in fill(response, part):
            yield 0
        count -= len(part)


def fill(response: requests.Response, out: memoryview) -> Iterator[int]:
    """Read the body into `out`, yielding the count so far. Raises InterruptedPieceError where it breaks off."""
    done = 0
    while done < len(out):
        count, fault = _portion(response.raw, out[done : done + PORTION_BYTES])
        done += count
        if count:
            yield done
        if fault is not None:
            raise fault


def _portion(raw: Any, out: memoryview) -> tuple[int, InterruptedPieceError | None]:
    """Read until `out` is full or PORTION_S are over: how much came, and why no more will.

    A server that sends a few bytes now and then must not keep anybody here, and one that sends much must not make
    everybody count each of its packets.
    """
    # http.client's own: urllib3 cannot read into memory that is there already, and a new piece of memory for each
    # portion costs time and, in the hands of many threads, tens of megabytes.
    body: http.client.HTTPResponse = raw._fp
    done, end = 0, time.monotonic() + PORTION_S
    while done < len(out) and (not done or time.monotonic() < end):
        try:
            count = _read_once(body, out[done:])
        except NETWORK_ERRORS as error:
            return done, _broken(error)
        if not count:
            return done, InterruptedPieceError("the connection ended early")
        done += count
        if body.isclosed():
            raw.release_conn()
    return done, None


def _broken(error: Exception) -> InterruptedPieceError:
    fault = InterruptedPieceError(f"the connection broke ({type(error).__name__})")
    fault.__cause__ = error
    return fault


def _read_once(body: Any, out: memoryview) -> int:
    """What `body.readinto` does, but for what has come: 0 at the end, else at least one byte."""
    if body.fp is None:
        return 0
    if body.chunked:
        data = body.read1(len(out))
        out[: len(data)] = data
        return len(data)
    if body.length is not None:
        out = out[: body.length]
    count: int = body.fp.readinto1(out)
    if body.length is not None:
        body.length -= count
    if not count or body.length == 0:
        # The connection is free for another request.
        body.close()
    return count
