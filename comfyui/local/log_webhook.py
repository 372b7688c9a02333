"""The log of a prediction while it runs: Cog posts it to a URL of ours, on loopback, as it grows.

Cog's server has no way to ask how far a prediction is; with `webhook` in a request it posts the prediction, with all of
its `logs` so far, at most every half second (https://github.com/replicate/cog, docs/http.md, "Webhooks"). A server that
cannot reach us runs the prediction all the same.
"""

from __future__ import annotations

import http.server
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MAX_BODY_BYTES = 16 * 1024**2
READ_TIMEOUT_S = 10.0
STOP_POLL_S = 0.05


class LogLines:
    """Turns logs that are each time sent whole into the lines that are new. Safe to feed from several threads."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._lock = threading.Lock()
        self._seen = 0

    def feed(self, logs: str, *, at_end: bool = False) -> None:
        """Hand on the lines that `logs` has beyond those seen; a last one without its end only `at_end`."""
        with self._lock:
            end = len(logs) if at_end else logs.rfind("\n") + 1
            # One that was overtaken on its way is shorter, and says nothing new.
            new, self._seen = logs[self._seen : end], max(self._seen, end)
            for line in new.splitlines():
                self._on_line(line)


@contextmanager
def log_webhook(lines: LogLines) -> Iterator[str]:
    """Receive webhooks into `lines`; yields the URL to give to a server on this machine, until the block ends.

    The URL cannot be guessed: whoever else is on this machine has nothing to say here.
    """
    path = f"/{secrets.token_urlsafe(24)}"

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = READ_TIMEOUT_S

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != path or not length.isdecimal() or int(length) > MAX_BODY_BYTES:
                self.send_error(404)
                return
            lines.feed(_logs_of(self.rfile.read(int(length))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,), name="log-webhook", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{path}"
        finally:
            server.shutdown()
            thread.join()


def _logs_of(body: bytes) -> str:
    """The logs in a webhook's body, "" for a body that is none."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    logs = value.get("logs") if isinstance(value, dict) else None
    return logs if isinstance(logs, str) else ""
