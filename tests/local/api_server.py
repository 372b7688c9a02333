"""A real HTTP server on loopback for stand-ins of services: every method, every body recorded, faults on order."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType

from tests.loopback_server import LoopbackServer
from tests.weights.storage_standin import Answer


@dataclass(frozen=True)
class Request:
    """A request that arrived whole; `path` is its target without the query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass
class Fault:
    """What happens to the next requests of a method whose path matches, `times` of them.

    With `answer` it is given instead; else the request is held between `reached` and `let_go`, when there are such
    events, and the connection is dropped if `drop` says so. `done_first` lets the service do what was asked before.
    """

    method: str
    pattern: str
    answer: Answer | None = None
    drop: bool = False
    done_first: bool = False
    reached: threading.Event | None = None
    let_go: threading.Event | None = None
    times: int = 1


class ApiServer(LoopbackServer):
    """A server whose answers `answer` gives; use it as a context manager."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                request = Request(
                    self.command, self.path.partition("?")[0], dict(self.headers.items()), outer.read_body(self)
                )
                with outer.lock:
                    outer.seen.append(request)
                    fault = outer.take_fault(request)
                answer = None if fault and not fault.done_first else outer.locked_answer(request)
                if fault is not None:
                    if fault.reached is not None and fault.let_go is not None:
                        fault.reached.set()
                        fault.let_go.wait(60)
                    if fault.drop:
                        self.close_connection = True
                        return
                    answer = fault.answer or answer or outer.locked_answer(request)
                assert answer is not None
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the standard library)
                pass

        super().__init__(Handler)

    @staticmethod
    def read_body(handler: BaseHTTPRequestHandler) -> bytes:
        """The body of a request, of a declared length or in chunks (RFC 9112, 7.1)."""
        if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        body = b""
        while size := int(handler.rfile.readline().partition(b";")[0], 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body

    def answer(self, request: Request) -> Answer:
        """The answer to a request; called by one thread at a time."""
        raise NotImplementedError

    def locked_answer(self, request: Request) -> Answer:
        with self.lock:
            return self.answer(request)

    def take_fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == request.method and re.search(fault.pattern, request.path):
                fault.times -= 1
                return fault
        return None

    def hold(self, method: str, pattern: str, *, done_first: bool = False, drop: bool = False) -> Fault:
        """Hold the next such request until `let_go` is set; `reached` says that it has come."""
        fault = Fault(
            method, pattern, done_first=done_first, drop=drop, reached=threading.Event(), let_go=threading.Event()
        )
        self.faults.append(fault)
        return fault

    def calls(self, method: str, pattern: str) -> list[Request]:
        """The requests seen so far of a method, whose whole path matches."""
        with self.lock:
            return [one for one in self.seen if one.method == method and re.fullmatch(pattern, one.path)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for fault in self.faults:
            if fault.let_go is not None:
                fault.let_go.set()
        super().__exit__(kind, error, traceback)
