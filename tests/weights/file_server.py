"""A real HTTP server on loopback whose answers are scripted per path, faults included; every request is recorded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback_server import LoopbackServer

TRICKLE_S = 0.05


@dataclass(frozen=True)
class Reply:
    """One answer.

    `declared` replaces the true Content-Length; `cut_after` closes the connection after so many bytes of the body;
    `chunked` sends it in HTTP chunks; `no_length` says nothing of its length; `stall_s` waits before the body, `hang_s`
    behind it; `trickle` lets single bytes come, up to half of them, until it is set.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    declared: int | str | None = None
    cut_after: int | None = None
    chunked: bool = False
    no_length: bool = False
    stall_s: float = 0.0
    hang_s: float = 0.0
    trickle: threading.Event | None = None


@dataclass(frozen=True)
class Seen:
    """A request that arrived: its target with the query, and its headers."""

    target: str
    headers: Mapping[str, str]


class FileServer(LoopbackServer):
    """Serves `replies`, by path without query; use it as a context manager."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.seen: list[Seen] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.seen.append(Seen(self.path, dict(self.headers.items())))
                reply = outer.replies.get(self.path.partition("?")[0], Reply(b"no such file", status=404))
                self.close_connection = True
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                elif not reply.no_length:
                    self.send_header("Content-Length", str(reply.declared or len(reply.body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.flush()
                time.sleep(reply.stall_s)
                body = reply.body if reply.cut_after is None else reply.body[: reply.cut_after]
                # A client that has seen enough goes away.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._send_body(body, reply)
                    time.sleep(reply.hang_s)

            def _send_body(self, body: bytes, reply: Reply) -> None:
                start = 0
                while reply.trickle is not None and start < len(body) // 2 and not reply.trickle.wait(TRICKLE_S):
                    self._send_part(body[start : start + 1], reply)
                    start += 1
                for position in range(start, len(body), 1000) if reply.chunked else (start,):
                    self._send_part(body[position : position + 1000] if reply.chunked else body[position:], reply)
                if reply.chunked and reply.cut_after is None:
                    self.wfile.write(b"0\r\n\r\n")

            def _send_part(self, part: bytes, reply: Reply) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if reply.chunked else part)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the standard library)
                pass

        super().__init__(Handler)

    def put(self, path: str, body: bytes = b"", **reply: object) -> str:
        """Script the answer for a path; returns its whole URL."""
        self.replies[path] = Reply(body, **reply)  # type: ignore[arg-type]
        return self.url + path
