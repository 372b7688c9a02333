"""A server that sends a few bytes now and then: they are told of as they come, so that whoever waits may stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from threading import Event

import pytest

from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.sources import plain
from comfyui.weights.transfer.body import PORTION_BYTES
from comfyui.weights.transfer.readers import RangeReader, RemoteObject, StreamReader, stream_chunks
from tests.weights.file_server import FileServer

BODY = bytes(range(256)) * 2


@pytest.fixture
def enough() -> Iterator[Event]:
    """Set, it lets all the rest come at once."""
    event = Event()
    yield event
    event.set()


def test_a_range(server: FileServer, opener: HttpOpener, enough: Event) -> None:
    headers = {"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}
    source = plain(server.put("/a.safetensors", BODY, status=206, headers=headers, trickle=enough))
    out = bytearray(len(BODY))
    counts = RangeReader(opener, RemoteObject(source, source.url, len(BODY), None)).read(0, memoryview(out))
    assert 0 < next(counts) < len(BODY) // 2
    enough.set()
    assert list(counts)[-1] == len(BODY)
    assert out == BODY


@pytest.mark.parametrize("chunked", [False, True])
def test_a_stream(server: FileServer, opener: HttpOpener, enough: Event, chunked: bool) -> None:
    source = plain(server.put("/a.safetensors", BODY, chunked=chunked, trickle=enough))
    out = bytearray(len(BODY))
    with closing(StreamReader(opener, source, source.url, len(BODY))) as reader:
        counts = reader.read(0, memoryview(out))
        assert 0 < next(counts) < len(BODY) // 2
        enough.set()
        assert list(counts)[-1] == len(BODY)
    assert out == BODY


def test_what_a_stream_reads_past(server: FileServer, opener: HttpOpener, enough: Event) -> None:
    first = len(BODY) - 100
    source = plain(server.put("/a.tar", BODY, trickle=enough))
    out = bytearray(100)
    with closing(StreamReader(opener, source, source.url, 100, first=first)) as reader:
        counts = reader.read(0, memoryview(out))
        assert next(counts) == 0
        enough.set()
        assert list(counts)[-1] == 100
    assert out == BODY[first:]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_stream_of_unknown_length(server: FileServer, opener: HttpOpener, enough: Event, chunked: bool) -> None:
    source = plain(server.put("/a.safetensors", BODY, chunked=chunked, no_length=not chunked, trickle=enough))
    chunks = stream_chunks(opener, source, source.url)
    first = next(chunks)
    assert 0 < len(first) < len(BODY) // 2
    enough.set()
    assert first + b"".join(chunks) == BODY


@pytest.mark.parametrize("chunked", [False, True])
def test_of_one_that_sends_much_the_portions_are_large(server: FileServer, opener: HttpOpener, chunked: bool) -> None:
    body = bytes(10 * PORTION_BYTES)
    source = plain(server.put("/a.safetensors", body, chunked=chunked))
    chunks = list(stream_chunks(opener, source, source.url))
    assert b"".join(chunks) == body
    # Packets and HTTP's chunks are far smaller, on a machine of any speed.
    assert len(chunks) < len(body) / 1000 / 2
