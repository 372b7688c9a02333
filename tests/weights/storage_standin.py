"""Stands in for object storage behind a CDN (S3, R2, CloudFront): ranges, strong ETags, signed queries, no log-ins.

Real HTTP on loopback; every request is recorded. It answers a token that reaches it with 400, as S3 does for a second
way of authentication.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback_server import LoopbackServer
from tests.weights.file_server import Seen


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Standin(LoopbackServer):
    """A server whose answers a function gives; use it as a context manager. Connections are kept open."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Without it, the body waits for the ack of the headers on a kept connection.
            disable_nagle_algorithm = True

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                outer.seen.append(Seen(self.path, {"method": self.command, **dict(self.headers.items())}))
                answer = outer.answer(self.command, self.path, dict(self.headers.items()))
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the standard library)
                pass

        super().__init__(Handler)

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """The answer to a request."""
        raise NotImplementedError

    @property
    def tokens_seen(self) -> set[str | None]:
        """The Authorization headers that arrived."""
        return {seen.headers.get("Authorization", seen.headers.get("authorization")) for seen in self.seen}


class StorageStandin(Standin):
    """Gives `files`, by path without query, whole or in ranges; `mangle` may change an answer on its way out."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.mangle: Callable[[Answer], Answer] = lambda answer: answer

    def put(self, path: str, body: bytes) -> str:
        self.files[path] = body
        return self.url + path

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        if "Authorization" in headers:
            return Answer(400, body=b"<Error><Code>InvalidArgument</Code></Error>")
        body = self.files.get(target.partition("?")[0])
        if body is None:
            return Answer(404, body=b"<Error><Code>NoSuchKey</Code></Error>")
        own = {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"', **self.headers}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
        if not found:
            return self.mangle(Answer(200, own, body))
        first = int(found[1])
        if first >= len(body):
            return self.mangle(Answer(416, {**own, "Content-Range": f"bytes */{len(body)}"}))
        piece = body[first : int(found[2] or len(body)) + 1]
        span = f"bytes {first}-{first + len(piece) - 1}/{len(body)}"
        return self.mangle(Answer(206, {**own, "Content-Range": span}, piece))
