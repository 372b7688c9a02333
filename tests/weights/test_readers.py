"""The rules of HTTP that a range must keep before its bytes count, one by one."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import DownloadError
from comfyui.settings import Settings
from comfyui.weights.http.answers import validator_of
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.sources import NO_TOKENS, Source, understand
from comfyui.weights.transfer.faults import ChangedSourceError, InterruptedPieceError, NoRangesError, PieceFault
from comfyui.weights.transfer.readers import (
    FileReader,
    RangeReader,
    RemoteObject,
    StreamReader,
    retry_after_s,
    stream_chunks,
)
from tests.weights.fault_server import Fault, FaultServer
from tests.weights.file_server import FileServer
from tests.weights.storage_standin import StorageStandin

BODY = bytes(range(256)) * 40


@pytest.fixture
def hasty_opener(settings: Settings) -> Iterator[HttpOpener]:
    """One that soon takes a silent server for gone."""
    with HttpOpener(settings, read_timeout_s=0.5) as opened:
        yield opened


@pytest.fixture
def faulty() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def source_of(url: str, settings: Settings) -> Source:
    return understand(url, settings, NO_TOKENS)


def ranged(opener: HttpOpener, settings: Settings, url: str, **more: Any) -> RangeReader:
    source = source_of(url, settings)
    known = RemoteObject(source, source.url, **{"size": len(BODY), "validator": '"v0"', **more})
    return RangeReader(opener, known)


def read(reader: RangeReader | StreamReader | FileReader, start: int, length: int) -> bytes:
    out = bytearray(length)
    assert list(reader.read(start, memoryview(out)))[-1] == length
    return bytes(out)


def answer(server: FileServer, body: bytes = BODY[:100], status: int = 206, **headers: str) -> str:
    """An answer with a right Content-Range for bytes 0-99, but for what is given."""
    given = {"Content-Range": f"bytes 0-99/{len(BODY)}", "ETag": '"v0"'}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return server.put(
        "/a.safetensors", body, status=status, headers={name: text for name, text in given.items() if text}
    )


def test_a_range_is_asked_for_as_it_should_be(faulty: FaultServer, opener: HttpOpener, settings: Settings) -> None:
    reader = ranged(opener, settings, faulty.put("/a.safetensors", BODY))
    assert read(reader, 0, 10) == BODY[:10]
    assert read(reader, 500, 1000) == BODY[500:1500]
    assert read(reader, len(BODY) - 1, 1) == BODY[-1:]
    headers = [request.headers for request in faulty.seen]
    assert [one["range"] for one in headers] == [
        "bytes=0-9",
        "bytes=500-1499",
        f"bytes={len(BODY) - 1}-{len(BODY) - 1}",
    ]
    assert {one["if-range"] for one in headers} == {'"v0"'}
    assert {one["accept-encoding"] for one in headers} == {"identity"}


def test_one_connection_is_kept(opener: HttpOpener, settings: Settings) -> None:
    """A range that was read to its end leaves its connection to the next one, whichever way its length was said."""
    with StorageStandin() as storage:
        reader = ranged(opener, settings, storage.put("/a.safetensors", BODY), validator=None)
        for start in range(0, 5000, 500):
            read(reader, start, 500)
        assert len(storage.seen) == 10
        assert storage.connections == 1
        with pytest.raises(ChangedSourceError):
            read(ranged(opener, settings, storage.url + "/a.safetensors", validator='"other"'), 0, 5)
        read(reader, 0, 10)
        # What was not read to its end is not used again.
        assert storage.connections == 2


def test_without_a_validator_there_is_no_if_range(faulty: FaultServer, opener: HttpOpener, settings: Settings) -> None:
    read(ranged(opener, settings, faulty.put("/a.safetensors", BODY), validator=None), 0, 10)
    assert "if-range" not in faulty.seen[0].headers


def test_a_part_of_an_object(faulty: FaultServer, opener: HttpOpener, settings: Settings) -> None:
    url = faulty.put("/a.tar", BODY)
    source = source_of(url, settings)
    reader = RangeReader(opener, RemoteObject(source, source.url, None, '"v0"'), first=700)
    assert read(reader, 5, 50) == BODY[705:755]
    assert faulty.seen[0].range == (705, 754)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Content_Range": ""}, "the server was asked for bytes 0-99 and sent others"),
        ({"Content_Range": "bytes 1-100/10240"}, "the server was asked for bytes 0-99 and sent bytes 1-100/10240"),
        ({"Content_Range": "bytes 0-98/10240"}, "the server was asked for bytes 0-99 and sent bytes 0-98/10240"),
        ({"Content_Range": "bytes 0-/10240"}, "the server was asked for bytes 0-99 and sent bytes 0-/10240"),
        ({"Content_Range": "0-99/10240"}, "the server was asked for bytes 0-99 and sent 0-99/10240"),
        ({"Content_Range": "bytes */10240"}, "the server was asked for bytes 0-99 and sent bytes */10240"),
        (
            {"Content_Range": f"bytes 0-{'9' * 6000}/1"},
            f"the server was asked for bytes 0-99 and sent bytes 0-{'9' * 72}",
        ),
        ({"Content_Encoding": "gzip"}, "the server sent Content-Encoding gzip, though none was asked for"),
    ],
)
def test_an_answer_that_may_be_better_next_time(
    server: FileServer, opener: HttpOpener, settings: Settings, headers: dict[str, Any], reason: str
) -> None:
    reader = ranged(opener, settings, answer(server, **headers))
    with pytest.raises(InterruptedPieceError) as caught:
        read(reader, 0, 100)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"ETag": '"v1"'}, "it was replaced at its source"),
        ({"Content_Range": "bytes 0-99/10241"}, "its length at its source is 10241 bytes now, not 10240"),
        ({"Content_Range": "bytes 0-99/100"}, "its length at its source is 100 bytes now, not 10240"),
    ],
)
def test_another_object(
    server: FileServer, opener: HttpOpener, settings: Settings, headers: dict[str, Any], reason: str
) -> None:
    reader = ranged(opener, settings, answer(server, **headers))
    with pytest.raises(ChangedSourceError) as caught:
        read(reader, 0, 100)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": ""}, {"Content_Range": "bytes 0-99/*"}, {"Content_Encoding": "identity"}]
)
def test_answers_that_are_right(
    server: FileServer, opener: HttpOpener, settings: Settings, headers: dict[str, Any]
) -> None:
    assert read(ranged(opener, settings, answer(server, **headers)), 0, 100) == BODY[:100]


@pytest.mark.parametrize(("declared", "body"), [(99, BODY[:100]), (101, BODY[:101]), (7, BODY[:7])])
def test_another_length_than_was_asked_for(
    server: FileServer, opener: HttpOpener, settings: Settings, declared: int, body: bytes
) -> None:
    server.put("/a.safetensors", body, status=206, declared=declared, headers={"Content-Range": "bytes 0-99/10240"})
    with pytest.raises(InterruptedPieceError) as caught:
        read(ranged(opener, settings, server.url + "/a.safetensors"), 0, 100)
    assert caught.value.reason == f"the server was asked for 100 bytes and announces {declared}"


def test_a_416_means_a_shorter_object(faulty: FaultServer, opener: HttpOpener, settings: Settings) -> None:
    url = faulty.put("/a.safetensors", BODY[:50])
    with pytest.raises(ChangedSourceError, match="it became shorter at its source"):
        read(ranged(opener, settings, url, validator=None), 60, 10)


@pytest.mark.parametrize(
    ("etag", "kind"),
    [('"v0"', NoRangesError), ("", NoRangesError), ('W/"v0"', NoRangesError), ('"v1"', ChangedSourceError)],
)
def test_a_200_to_a_range(
    server: FileServer, opener: HttpOpener, settings: Settings, etag: str, kind: type[PieceFault]
) -> None:
    with pytest.raises(kind):
        read(ranged(opener, settings, answer(server, BODY, 200, ETag=etag, Content_Range="")), 0, 100)


@pytest.mark.parametrize("tag", ["weak", "none"])
def test_without_a_validator_answers_are_compared(
    faulty: FaultServer, opener: HttpOpener, settings: Settings, tag: str
) -> None:
    other = BODY[::-1]
    url = faulty.put(
        "/a.safetensors", BODY, other if tag == "weak" else other + b"x", tag=tag, data_faults={2: Fault.CHANGE}
    )
    reader = ranged(opener, settings, url, validator=None, size=None)
    read(reader, 0, 100)
    read(reader, 100, 100)
    with pytest.raises(ChangedSourceError, match="it was replaced at its source"):
        read(reader, 200, 100)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server(server: FileServer, opener: HttpOpener, settings: Settings, status: int) -> None:
    reader = ranged(opener, settings, answer(server, b"wait", status, Retry_After="7"))
    with pytest.raises(InterruptedPieceError) as caught:
        read(reader, 0, 100)
    assert (caught.value.reason, caught.value.retry_after_s) == (f"the server answered {status}", 7.0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_a_refusal_is_final(server: FileServer, opener: HttpOpener, settings: Settings, status: int) -> None:
    url = answer(server, b"no", status)
    with pytest.raises(DownloadError, match=f"{url} was not given: the server answered {status}"):
        read(ranged(opener, settings, url), 0, 100)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET, Fault.STALL, Fault.NONSENSE])
def test_a_connection_that_fails(
    faulty: FaultServer, hasty_opener: HttpOpener, settings: Settings, fault: Fault
) -> None:
    reader = ranged(hasty_opener, settings, faulty.put("/a.safetensors", BODY, data_faults={0: fault}))
    out, counts = bytearray(1000), [0]
    with pytest.raises(InterruptedPieceError):
        counts.extend(reader.read(0, memoryview(out)))
    count = counts[-1]
    # What came before a connection's end counts; the others may take with them what was under way.
    assert count in ((500,) if fault is Fault.CUT else (0, 500))
    assert out[:count] == BODY[:count]
    assert read(reader, count, 1000 - count) == BODY[count:1000]


def test_a_server_that_is_not_there(opener: HttpOpener, settings: Settings, faulty: FaultServer) -> None:
    with FaultServer() as other:
        url = other.put("/a.safetensors", BODY)
    with pytest.raises(InterruptedPieceError, match="NewConnectionError"):
        read(ranged(opener, settings, url), 0, 10)


def test_a_url_that_the_policy_forbids_is_final(settings: Settings, faulty: FaultServer) -> None:
    url = faulty.put("/a.safetensors", BODY)
    with HttpOpener(replace(settings, allow_private_urls=False)) as strict, pytest.raises(DownloadError):
        read(ranged(strict, settings, url), 0, 10)


def test_a_redirect_is_remembered_until_its_link_ends(opener: HttpOpener, settings: Settings) -> None:
    with FaultServer() as home, FaultServer() as away:
        home.other = away
        away.objects = home.objects
        url = home.put("/a.safetensors", BODY, away=True, data_faults={3: Fault.NOT_FOUND, 5: Fault.RESET})
        reader = ranged(opener, settings, url.replace("http://", "http://user:s3cret@"))
        for start in (0, 100, 200):
            assert read(reader, start, 100) == BODY[start : start + 100]
        assert (len(home.seen), len(away.seen)) == (1, 3)
        # A 404 there: the signature may have ended, so home is asked for a new one.
        assert read(reader, 300, 100) == BODY[300:400]
        assert (len(home.seen), len(away.seen)) == (2, 5)
        # A broken connection there: home may know a server that is well.
        with pytest.raises(InterruptedPieceError):
            read(reader, 400, 100)
        assert read(reader, 400, 100) == BODY[400:500]
        assert len(home.seen) in (2, 3)
        assert all(request.headers["authorization"].startswith("Basic ") for request in home.seen)
        assert all("authorization" not in request.headers for request in away.seen)


def test_a_server_that_is_down_is_forgotten(opener: HttpOpener, settings: Settings) -> None:
    with FaultServer() as home:
        with FaultServer() as away:
            home.other, away.objects = away, home.objects
            reader = ranged(opener, settings, home.put("/a.safetensors", BODY, away=True))
            read(reader, 0, 10)
        with pytest.raises(InterruptedPieceError):
            read(reader, 10, 10)
        home.other = None
        assert read(reader, 10, 10) == BODY[10:20]


def test_a_way_that_leads_home_carries_no_token_later(
    server: FileServer, other_server: FileServer, opener: HttpOpener, settings: Settings
) -> None:
    """home → elsewhere → home: what elsewhere wishes for at home gets no token, the second time neither."""
    elsewhere = other_server.put("/b", status=302, headers={"Location": answer(server)})
    url = server.put("/start.safetensors", status=302, headers={"Location": elsewhere})
    source = replace(source_of(url, settings), secret_headers=MappingProxyType({"Authorization": "Bearer hf_SECRET"}))
    reader = RangeReader(opener, RemoteObject(source, source.url, len(BODY), '"v0"'))
    for _ in range(3):
        assert read(reader, 0, 100) == BODY[:100]
    asked = [("Authorization" in seen.headers) for seen in server.seen if seen.target == "/a.safetensors"]
    assert asked == [False] * 3


def stream(opener: HttpOpener, settings: Settings, url: str, size: int = len(BODY), first: int = 0) -> StreamReader:
    source = source_of(url, settings)
    return StreamReader(opener, source, source.url, size, first=first)


@pytest.mark.parametrize("length", [True, False])
def test_a_stream(faulty: FaultServer, opener: HttpOpener, settings: Settings, length: bool) -> None:
    url = faulty.put("/a.safetensors", BODY, length=length)
    with closing(stream(opener, settings, url)) as reader:
        assert b"".join(read(reader, start, 1024) for start in range(0, len(BODY), 1024)) == BODY
    assert len(faulty.seen) == 1
    assert "range" not in faulty.seen[0].headers


def test_a_stream_of_a_part(faulty: FaultServer, opener: HttpOpener, settings: Settings) -> None:
    with closing(stream(opener, settings, faulty.put("/a.tar", BODY), size=300, first=5000)) as reader:
        assert read(reader, 0, 200) + read(reader, 200, 100) == BODY[5000:5300]


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (True, "its length at its source is 10240 bytes now, not 10000"),
        (False, "its source sends more than its 10000 bytes now"),
    ],
)
def test_a_stream_of_another_length(
    faulty: FaultServer, opener: HttpOpener, settings: Settings, length: bool, reason: str
) -> None:
    """A file without a structure of its own would else be cut in silence."""
    url = faulty.put("/a.safetensors", BODY, length=length)
    with closing(stream(opener, settings, url, size=10_000)) as reader, pytest.raises(ChangedSourceError) as caught:
        read(reader, 0, 10_000)
    assert caught.value.reason == reason


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET, Fault.STALL, Fault.BUSY, Fault.GZIP, Fault.NONSENSE])
def test_a_stream_that_fails(faulty: FaultServer, hasty_opener: HttpOpener, settings: Settings, fault: Fault) -> None:
    url = faulty.put("/a.safetensors", BODY, data_faults={0: fault})
    with closing(stream(hasty_opener, settings, url)) as reader:
        with pytest.raises(InterruptedPieceError):
            read(reader, 0, len(BODY))
        reader.close()
        with pytest.raises(InterruptedPieceError, match="the stream is closed"):
            read(reader, 5120, 100)
        assert read(reader, 0, len(BODY)) == BODY
    with pytest.raises(InterruptedPieceError):
        list(
            stream_chunks(
                hasty_opener, source_of(faulty.put("/b", BODY, data_faults={0: fault}), settings), url[:-14] + "/b"
            )
        )


@pytest.mark.parametrize("fault", [Fault.NOT_FOUND, Fault.HTML])
def test_a_stream_that_is_refused(faulty: FaultServer, opener: HttpOpener, settings: Settings, fault: Fault) -> None:
    url = faulty.put("/a.safetensors", BODY, data_faults={0: fault})
    with closing(stream(opener, settings, url)) as reader, pytest.raises(DownloadError, match="was not given"):
        read(reader, 0, 100)


@pytest.mark.parametrize("first", [0, 100])
def test_a_file(tmp_path: Path, first: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(BODY)
    with closing(FileReader(path, first=first)) as reader:
        assert read(reader, 50, 5000) == BODY[first + 50 : first + 5050]
        with pytest.raises(InterruptedPieceError, match=f"the file ends at byte {len(BODY)}"):
            read(reader, 10_000, 1000)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader._fd)


def test_a_disk_that_cannot_read_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "a"
    path.write_bytes(BODY)
    monkeypatch.setattr(os, "preadv", fail)
    with closing(FileReader(path)) as reader, pytest.raises(InterruptedPieceError) as caught:
        read(reader, 0, 100)
    assert caught.value.reason == "Input/output error"


def test_validators() -> None:
    date = "Fri, 20 Nov 2026 08:00:00 GMT"
    assert validator_of({"ETag": '"a"', "Last-Modified": date}) == '"a"'
    assert validator_of({"ETag": 'W/"a"', "Last-Modified": date}) is None
    assert validator_of({"Last-Modified": date}) == date
    assert validator_of({"Last-Modified": "some day"}) is None
    assert validator_of({"Last-Modified": "Fri, 20 Nov 2026 08:00:00 +99999999999999999999"}) is None
    assert validator_of({}) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("0", 0.0), (" 120 ", 120.0), ("-1", None), ("1.5", None), ("²", None), ("", None), ("soon", None),
     ("9" * 5000, None), ("Mon, 99 Jan 2026 00:00:00 GMT", None)],
)  # fmt: skip
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text) == seconds


def test_retry_after_as_a_date() -> None:
    wish_s = retry_after_s(formatdate(time.time() + 30, usegmt=True))
    assert wish_s is not None
    assert 27 < wish_s <= 30


@given(st.text(max_size=60))
def test_no_retry_after_is_too_odd(text: str) -> None:
    assert retry_after_s(text) is None or isinstance(retry_after_s(text), float)


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_content_range_is_too_odd(text: str) -> None:
    source = understand("https://example.com/a.safetensors", Settings.from_environ({}), NO_TOKENS)
    reader = RangeReader(None, RemoteObject(source, source.url, 10, None))  # type: ignore[arg-type]
    response = requests.Response()
    response.status_code = 206
    response.headers["Content-Range"] = text
    if re.fullmatch(r"bytes 0-9/(10|\*)", text.strip()):
        return
    with pytest.raises(PieceFault):
        reader._check_range(response, 0, 9)
