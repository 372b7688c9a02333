"""Serve files of this machine over HTTP on loopback, so that a local file can be named by a URL like any other.

Ranges are served too (RFC 9110, 14), with an ETag of size and time: who fetches in parts finds a server that can.
"""

from __future__ import annotations

import http.server
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

CHUNK_BYTES = 1024**2
ONE_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{0,19})")


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that has seen enough closes the connection: nothing to tell anybody.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def serve_files(files: Mapping[str, Path]) -> Iterator[dict[str, str]]:
    """Serve each file under its key ("checkpoints/a.safetensors"); yields the URL of each key until the block ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # Only the named files exist here.
            path = files.get(unquote(urlsplit(self.path).path).lstrip("/"))
            if path is None or not path.is_file():
                self.send_error(404)
                return
            with path.open("rb") as file:
                self._send(file, path)

        def _send(self, file: BinaryIO, path: Path) -> None:
            stat = path.stat()
            etag = f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
            first, last, status = 0, stat.st_size - 1, 200
            asked = ONE_RANGE.fullmatch(self.headers.get("Range", ""))
            if asked and self.headers.get("If-Range", etag) == etag:
                first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
                if first > last:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{stat.st_size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{stat.st_size}")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("ETag", etag)
            self.end_headers()
            file.seek(first)
            left = last - first + 1
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                self.wfile.write(chunk)
                left -= len(chunk)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            return

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="file-server", daemon=True)
    thread.start()
    try:
        yield {key: f"http://127.0.0.1:{server.server_port}/{quote(key)}" for key in files}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
