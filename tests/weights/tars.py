"""Tars of weights made by hand, a server that gives ranges of them, and faults to put between the two."""

from __future__ import annotations

import contextlib
import re
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal

from comfyui.weights.listener import PlainLines
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, Weight
from comfyui.weights.tar.layout import member_header, padded, tar_length
from comfyui.weights.transfer.pump import TransferOptions
from comfyui.weights.transfer.retry import RetryPolicy
from tests.loopback_server import LoopbackServer
from tests.weights.samples import sha256

IMPATIENT = TransferOptions(
    connections=4,
    piece_bytes=16 * 1024,
    policy=RetryPolicy(first_wait_s=0.002, longest_wait_s=0.01, longest_wish_s=0.01, fruitless_tries=2, restarts=2),
)
MANIFEST_ROOM = 2048


def baked(files: Mapping[str, bytes], urls: Mapping[str, str] | None = None) -> tuple[bytes, Manifest]:
    """A tar as bake makes it, and its manifest."""
    position = 512 + MANIFEST_ROOM
    weights, members = [], []
    for path, body in files.items():
        header = member_header(path, len(body))
        weights.append(Weight(path, (urls or {}).get(path), len(body), sha256(body), position + len(header)))
        members.append(header + body + bytes(-len(body) % 512))
        position += len(members[-1])
    manifest = Manifest(tuple(weights))
    return with_manifest(manifest, b"".join(members)), manifest


def with_manifest(manifest: Manifest, members: bytes) -> bytes:
    """A tar with this manifest, whatever its members are."""
    text = manifest.dump().ljust(MANIFEST_ROOM)
    return ended(member_header(MANIFEST_NAME, MANIFEST_ROOM) + text + members)


def member(
    name: str,
    body: bytes,
    kind: bytes = tarfile.REGTYPE,
    tar_format: Literal[0, 1, 2] = 1,
    pax: Mapping[str, str] | None = None,
) -> bytes:
    """One member, of any kind."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = len(body), kind, dict(pax or {})
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = "/etc/passwd"
    return info.tobuf(tar_format) + body + bytes(-len(body) % 512)


def ended(*members: bytes) -> bytes:
    """A whole tar of these members."""
    data = b"".join(members)
    return data.ljust(tar_length(padded(len(data))), b"\0")


def flipped(data: bytes, at: int, bit: int = 1) -> bytes:
    """The data with one bit of one byte turned over."""
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


class Lines(PlainLines):
    """A listener that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Asked:
    """A request: its path, the first and last byte it wants, None for all of it."""

    path: str
    span: tuple[int, int] | None


@dataclass
class Served:
    """A file on the server; `spoil` changes a body that is about to be sent, `status` answers in its place."""

    body: bytes
    ranges: bool = True
    etag: str | None = '"one"'
    status: int | Callable[[Asked], int | None] | None = None
    spoil: Callable[[Asked, bytes], bytes] = lambda _asked, body: body
    cut: Callable[[Asked], int | None] = lambda _asked: None
    headers: Mapping[str, str] = field(default_factory=dict)
    chunk_delay_s: float = 0.0


class RangeServer(LoopbackServer):
    """A storage server on loopback; use it as a context manager."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the standard library)
                pass

        super().__init__(Handler)

    def put(self, path: str, body: bytes, **more: object) -> str:
        """Serve a file; returns its URL."""
        self.files[path] = Served(body, **more)  # type: ignore[arg-type]
        return self.url + path

    def bytes_asked(self, path: str) -> list[tuple[int, int]]:
        """The ranges of a file that were asked for."""
        return [asked.span for asked in self.asked if asked.path == path and asked.span is not None]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        served = self.files.get(path, Served(b"no such file", status=404))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", "")) if served.ranges else None
        changed = handler.headers.get("If-Range") not in (None, served.etag)
        span = None if found is None or changed else (int(found[1]), min(int(found[2]), len(served.body) - 1))
        asked = Asked(path, span)
        self.asked.append(asked)
        status, body = 200, served.body
        headers = dict(served.headers)
        refused = served.status(asked) if callable(served.status) else served.status
        if refused is not None:
            status = refused
        elif span is not None and span[0] >= len(served.body):
            status, body, headers["Content-Range"] = 416, b"", f"bytes */{len(served.body)}"
        elif span is not None:
            status, body = 206, served.body[span[0] : span[1] + 1]
            headers["Content-Range"] = f"bytes {span[0]}-{span[1]}/{len(served.body)}"
        if served.etag:
            headers["ETag"] = served.etag
        cut = served.cut(asked)
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        body = served.spoil(asked, body)
        self._send(handler, body if cut is None else body[:cut], served.chunk_delay_s)
        if cut is not None:
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, delay_s: float) -> None:
        step = len(body) or 1
        if delay_s:
            step = 4096
        for start in range(0, len(body), step):
            handler.wfile.write(body[start : start + step])
            if delay_s:
                threading.Event().wait(delay_s)


def on_disk(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}
