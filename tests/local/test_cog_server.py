"""Cog's server as a child: where it listens, and what it prints and answers. What it serves is in tests/e2e."""

from __future__ import annotations

import mimetypes
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from comfyui.deadline import Deadline
from comfyui.engine.server import free_port
from comfyui.errors import EngineError
from comfyui.local import cog_server
from comfyui.local.cog_server import CogServer, file_of_data_uri, readable_line, suffix_of_data_uri

READY_S = 120.0
LINE = (
    '{"timestamp":"2026-11-20T07:12:00.1Z","level":"INFO","fields":{"message":"[comfyui] Starting server"},'
    '"target":"coglet::worker"}'
)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port at which somebody answers who is not Cog."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")

        threading.Thread(target=answer, daemon=True).start()
        yield other.getsockname()[1]
        other.shutdown(socket.SHUT_RDWR)


def test_a_port_that_was_taken_meanwhile_is_left_for_another(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [taken_port, taken_port, free_port()]
    monkeypatch.setattr(cog_server, "free_port", lambda: ports.pop(0))
    with CogServer("train", environ={}, sink=lambda _line: None) as server:
        server.wait_ready(Deadline(READY_S, "Its setup"))
        assert server.port not in (0, taken_port)
        assert server.health()["status"] == "READY"
    assert ports == []


def test_a_port_that_was_asked_for_and_is_taken_is_said_in_a_sentence(taken_port: int) -> None:
    # At once: what listens there may be a Cog server that is ready.
    with pytest.raises(EngineError) as caught:
        CogServer("train", environ={}, sink=lambda _line: None, port=taken_port)
    assert str(caught.value) == (
        f"Port {taken_port} is taken: another program listens there. Stop that one, or choose another port."
    )


def test_an_address_of_another_machine_is_said_in_a_sentence() -> None:
    # An address for documentation, which no machine has (RFC 5737).
    with pytest.raises(EngineError, match=r"No server can listen on 192\.0\.2\.1, port \d+: "):
        CogServer("train", environ={}, sink=lambda _line: None, host="192.0.2.1", port=free_port())


def test_an_address_that_the_machine_lacks_is_no_problem_beside_one_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, free_port())) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_given, **_more: found)
    cog_server._require_free("localhost", 5000)
    found.pop()
    with pytest.raises(EngineError, match="No server can listen on localhost, port 5000: "):
        cog_server._require_free("localhost", 5000)


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("192.168.1.5", "192.168.1.5"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("gpu-box", "gpu-box"),
    ],
)
def test_a_server_is_asked_where_it_listens(host: str, reached_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoProcess:
        def __init__(self, *arguments: object, **more: object) -> None: ...

        def stop(self, grace_s: float) -> None: ...

    monkeypatch.setattr(cog_server, "ManagedProcess", NoProcess)
    with CogServer("predict", environ={}, sink=lambda _line: None, host=host) as server:
        assert server.base_url == f"http://{reached_at}:{server.port}"


@pytest.fixture
def no_system_media_types(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A slim container has no /etc/mime.types, and Python's own list knows image/webp only as a common type."""
    with monkeypatch.context() as changed:
        changed.setattr(mimetypes, "knownfiles", [])
        mimetypes.init()
        yield
    mimetypes.init()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (LINE, "[comfyui] Starting server"),
        ('{"fields": {"message": 7}}', "7"),
        *(
            (line, line)
            for line in ("plain text", "", "7", "null", "[1]", '"x"', "{}", '{"fields": "x"}', '{"fields": {}}')
        ),
    ],
)
def test_the_text_of_a_log_line_is_what_our_code_printed(line: str, text: str) -> None:
    assert readable_line(line) == text


def test_the_bytes_of_a_data_uri() -> None:
    assert file_of_data_uri("data:image/webp;base64,AP+A") == b"\x00\xff\x80"
    assert file_of_data_uri("data:;base64,") == b""


@pytest.mark.parametrize(
    "uri",
    ["", "http://127.0.0.1/a.png", "data:text/plain,hello", "data:image/png;base64,AP+", "data:image/png;base64,*"],
)
def test_what_is_no_base64_data_uri_is_a_value_error(uri: str) -> None:
    with pytest.raises(ValueError, match=r"data: URI|base64|padding"):
        file_of_data_uri(uri)


@pytest.mark.parametrize(
    ("uri", "suffix"),
    [
        ("data:image/png;base64,AA==", ".png"),
        ("data:image/jpeg;base64,AA==", ".jpg"),
        ("data:image/webp;base64,AA==", ".webp"),
        ("data:video/mp4;base64,AA==", ".mp4"),
        ("data:text/plain,hello", ".txt"),
        ("data:application/x-unheard-of;base64,AA==", ".bin"),
        ("data:,hello", ".bin"),
    ],
)
@pytest.mark.usefixtures("no_system_media_types")
def test_the_file_ending_of_a_data_uri_is_that_of_its_media_type(uri: str, suffix: str) -> None:
    assert suffix_of_data_uri(uri) == suffix
