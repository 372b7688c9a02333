"""A loopback HTTP/1.1 server that speaks ranges right, and answers chosen requests wrong in every way we know.

Each object has two scripts: faults by the number of the request for its data, and by the number of the question what
it is (`bytes=0-0`). Every request is recorded. It is written on bare sockets, for speed and for lies that a library
would not tell.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum, auto
from types import TracebackType
from typing import BinaryIO, Self

HTML = b"<!DOCTYPE html><html><body>Just a moment...</body></html>"
JSON = b'{"error": "rate limited"}'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
GZIP = b"\x1f\x8b\x08\0 not really"
STALL_S = 2.0
"""Longer than any test's patience; ends when the server does."""


class Fault(Enum):
    """What is wrong with one answer."""

    CUT = auto()
    RESET = auto()
    STALL = auto()
    DRIP = auto()
    FEWER = auto()  # a Content-Length below the body's
    MORE = auto()  # a Content-Length above it
    OTHER_START = auto()  # a Content-Range that was not asked for
    OTHER_TOTAL = auto()
    NO_CONTENT_RANGE = auto()
    WRONG_BYTES = auto()  # right headers, bytes from elsewhere in the object
    FLIP = auto()
    WHOLE = auto()  # 200 whatever the range
    CHUNKED = auto()
    UNSATISFIABLE = auto()
    HTML = auto()
    JSON = auto()
    LFS = auto()
    GZIP = auto()
    BUSY = auto()
    BUSY_429 = auto()
    BUSY_DATE = auto()
    BROKEN = auto()
    NOT_FOUND = auto()
    REDIRECT = auto()
    CHANGE = auto()  # from now on the object's next version is served
    NONSENSE = auto()  # not HTTP


@dataclass
class Served:
    """An object: `versions` of its bytes, the first until a CHANGE.

    `tag` is "strong", "weak", "date" or "none"; `ranges` and `if_range` whether it honours these headers; `length`
    whether it says how long it is; `away` whether the home server always redirects to the other one.
    """

    versions: list[bytes] = field(repr=False)
    data_faults: Mapping[int, Fault] = field(default_factory=dict)
    question_faults: Mapping[int, Fault] = field(default_factory=dict)
    tag: str = "strong"
    ranges: bool = True
    if_range: bool = True
    length: bool = True
    away: bool = False
    version: int = 0
    data_requests: int = 0
    questions: int = 0

    def validators(self) -> dict[str, str]:
        match self.tag:
            case "strong":
                return {"ETag": f'"v{self.version}"'}
            case "weak":
                return {"ETag": f'W/"v{self.version}"'}
            case "date":
                return {"Last-Modified": formatdate(1_700_000_000 + self.version, usegmt=True)}
        return {}


@dataclass(frozen=True)
class Request:
    """One that arrived."""

    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2])) if found else None


class FaultServer:
    """Serves `objects` by path; `other` is where redirects lead. Use it as a context manager.

    `rate` limits a connection to so many bytes a second. `sent` counts the bytes of bodies, `dealt` the faults.
    """

    def __init__(self, *, rate: float | None = None) -> None:
        self.objects: dict[str, Served] = {}
        self.other: FaultServer | None = None
        self.seen: list[Request] = []
        self.sent = 0
        self.dealt: Counter[Fault] = Counter()
        self.answering = self.most_answering = 0
        self.rate = rate
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(0.05)
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def put(self, path: str, *versions: bytes, **more: object) -> str:
        """Serve these versions of an object at `path`; returns its URL."""
        self.objects[path] = Served(list(versions), **more)  # type: ignore[arg-type]
        return self.url + path

    def data_requests(self, path: str) -> list[Request]:
        return [request for request in self.seen if request.path == path and request.range != (0, 0)]

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection = self._listener.accept()[0]
            except TimeoutError:
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
            try:
                while not self._stop.is_set() and (request := _read_request(stream)) is not None:
                    with self._lock:
                        self.seen.append(request)
                        self.answering += 1
                        self.most_answering = max(self.answering, self.most_answering)
                    try:
                        keep = self._answer(connection, request)
                    finally:
                        with self._lock:
                            self.answering -= 1
                    if not keep:
                        return
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        """Send one answer; whether the connection may be used again."""
        served = self.objects.get(request.path)
        if served is None:
            return self._send(connection, 404, {}, b"no such object")
        with self._lock:
            is_question = request.range == (0, 0)
            script, number = (
                (served.question_faults, served.questions)
                if is_question
                else (served.data_faults, served.data_requests)
            )
            if self.other is None or not served.away:
                if is_question:
                    served.questions += 1
                else:
                    served.data_requests += 1
            fault = script.get(number)
            if fault is not None:
                self.dealt[fault] += 1
            if fault is Fault.CHANGE:
                served.version = min(served.version + 1, len(served.versions) - 1)
            body, validators = served.versions[served.version], served.validators()
        if self.other is not None and (served.away or fault is Fault.REDIRECT):
            return self._send(connection, 302, {"Location": self.other.url + request.path + "?signature=SECRET"}, b"")
        return self._answer_with(connection, request, served, fault, body, validators)

    def _answer_with(
        self,
        connection: socket.socket,
        request: Request,
        served: Served,
        fault: Fault | None,
        body: bytes,
        validators: Mapping[str, str],
    ) -> bool:
        match fault:
            case Fault.BUSY:
                return self._send(connection, 503, {"Retry-After": "0"}, b"busy")
            case Fault.BUSY_429:
                return self._send(connection, 429, {"Retry-After": "0"}, b"busy")
            case Fault.BUSY_DATE:
                return self._send(connection, 503, {"Retry-After": formatdate(usegmt=True)}, b"busy")
            case Fault.BROKEN:
                return self._send(connection, 500, {}, b"oops")
            case Fault.NOT_FOUND:
                return self._send(connection, 404, {}, b"gone")
            case Fault.UNSATISFIABLE:
                return self._send(connection, 416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            case Fault.HTML:
                return self._send(connection, 200, {"Content-Type": "text/html; charset=utf-8"}, HTML)
            case Fault.JSON:
                return self._send(connection, 200, {"Content-Type": "application/json"}, JSON)
            case Fault.LFS:
                return self._send(connection, 200, {"Content-Type": "text/plain"}, LFS)
            case Fault.GZIP:
                return self._send(connection, 200, {"Content-Encoding": "gzip"}, GZIP)
            case Fault.NONSENSE:
                connection.sendall(b"220 smtp.example.com ESMTP\r\n\r\n")
                return False
        start, end = 0, len(body) - 1
        status, headers = 200, {**validators}
        asked = request.range if served.ranges and fault is not Fault.WHOLE else None
        if_range = request.headers.get("if-range")
        if asked and if_range is not None and served.if_range and if_range not in validators.values():
            asked = None
        if asked:
            if asked[0] >= len(body):
                return self._send(connection, 416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            start, end = asked[0], min(asked[1], len(body) - 1)
            status = 206
            headers["Content-Range"] = _content_range(fault, start, end, len(body))
            if not headers["Content-Range"]:
                del headers["Content-Range"]
        data = body[start : end + 1]
        if fault is Fault.WRONG_BYTES:
            data = (body[end + 1 :] + body)[: len(data)]
        if fault is Fault.FLIP and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return self._send(connection, status, headers, data, fault=fault, length=served.length)

    def _send(
        self,
        connection: socket.socket,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        fault: Fault | None = None,
        length: bool = True,
    ) -> bool:
        headers = dict(headers)
        chunked = fault is Fault.CHUNKED or (not length and status == 200)
        declared = len(body) + {Fault.FEWER: -(len(body) // 3 + 1), Fault.MORE: 7}.get(fault or Fault.CUT, 0)
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(max(0, declared))
        head = f"HTTP/1.1 {status} Whatever\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(head.encode() + b"\r\n")
        broken = fault in (Fault.CUT, Fault.RESET, Fault.STALL)
        self._send_body(connection, body[: len(body) // 2] if broken else body, fault, chunked=chunked)
        if fault is Fault.STALL:
            self._stop.wait(STALL_S)
        if fault is Fault.RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not broken and declared == len(body)

    def _send_body(self, connection: socket.socket, body: bytes, fault: Fault | None, *, chunked: bool) -> None:
        step = max(1, len(body) // 5) if fault is Fault.DRIP else 16 * 1024 if self.rate or chunked else len(body) or 1
        for start in range(0, len(body), step):
            part = body[start : start + step]
            if fault is Fault.DRIP:
                self._stop.wait(0.01)
            if self.rate:
                self._stop.wait(len(part) / self.rate)
            if self._stop.is_set():
                return
            with self._lock:
                self.sent += len(part)
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        if chunked and fault not in (Fault.CUT, Fault.RESET, Fault.STALL):
            connection.sendall(b"0\r\n\r\n")


def _content_range(fault: Fault | None, start: int, end: int, total: int) -> str:
    match fault:
        case Fault.OTHER_START:
            return f"bytes {start + 1}-{end + 1}/{total}"
        case Fault.OTHER_TOTAL:
            return f"bytes {start}-{end}/{total + 1000}"
        case Fault.NO_CONTENT_RANGE:
            return ""
    return f"bytes {start}-{end}/{total}"


def _read_request(stream: BinaryIO) -> Request | None:
    line = stream.readline(65536)
    if not line.endswith(b"\r\n"):
        return None
    headers: dict[str, str] = {}
    while (header := stream.readline(65536)) not in (b"\r\n", b""):
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Request(line.decode("latin-1").split(" ")[1].partition("?")[0], headers)
