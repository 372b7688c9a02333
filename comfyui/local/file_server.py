"""Serve files of this machine over HTTP on loopback, so that a local file can be named by a URL like any other."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit


@contextmanager
def serve_files(files: Mapping[str, Path]) -> Iterator[dict[str, str]]:
    """Serve each file under its key ("checkpoints/a.safetensors"); yields the URL of each key until the block ends."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            # Only the named files exist here; anything else is a path that cannot exist.
            key = unquote(urlsplit(path).path).lstrip("/")
            return str(files[key]) if key in files else "/nonexistent/file"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="file-server", daemon=True)
    thread.start()
    try:
        yield {key: f"http://127.0.0.1:{server.server_port}/{quote(key)}" for key in files}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
