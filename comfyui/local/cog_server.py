"""Cog's own HTTP server as a child process: the same program that answers on Replicate, without Docker.

One server serves one mode: predictions or trainings. Its HTTP API: https://github.com/replicate/cog, docs/http.md.
"""

from __future__ import annotations

import base64
import errno
import json
import mimetypes
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import requests

from comfyui.deadline import Deadline
from comfyui.engine.server import PORT_TAKEN, PORT_TRIES, free_port
from comfyui.errors import EngineError
from comfyui.process import LineLog, ManagedProcess
from comfyui.settings import PROJECT_ROOT

HEALTH_POLL_S = 0.1
HEALTH_TIMEOUT_S = 10.0
STOP_GRACE_S = 15.0
FREE_SLOT_S = 10.0


class CogServer:
    """A Cog server of this project. Use it as a context manager: it is stopped, with all it started, at the end.

    `environ` is added to ours (COG_WEIGHTS, MODELS_DIR, …); `sink` gets the lines people care about, from a thread.
    Raises EngineError for a `port` that is taken, or a `host` that is not this machine's.
    """

    def __init__(
        self,
        mode: Literal["predict", "train"],
        *,
        environ: Mapping[str, str],
        sink: Callable[[str], None],
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        self.mode = mode
        self._host = host
        self._sink = sink
        stub = {"predict": "predict.py:Predictor", "train": "train.py:train"}[mode]
        self._env = {
            **os.environ,
            **environ,
            f"COG_{mode.upper()}_TYPE_STUB": stub,
            # Cog starts its worker as `python` from PATH, whatever Python runs the server.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        # One for all health checks: the end of each would be a moment in which Python loses a Ctrl-C.
        self._health = requests.Session()
        self._starts_left = 1 if port else PORT_TRIES
        if port:
            # Before the start: a Cog server that listens there would tell wait_ready that it is ready.
            _require_free(host, port)
        self._process = self._start(port or free_port())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _start(self, port: int) -> ManagedProcess:
        self.port = port
        self.base_url = f"http://{_reached_at(self._host)}:{port}"
        self._starts_left -= 1
        return ManagedProcess(
            ["-m", "cog.server.http", "--host", self._host, *(["--x-mode", "train"] if self.mode == "train" else [])],
            cwd=PROJECT_ROOT,
            env={**self._env, "PORT": str(port)},
            log=LineLog(lambda line: self._sink(readable_line(line))),
        )

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def returncode(self) -> int | None:
        """None while the server runs, then its exit code."""
        return self._process.returncode()

    def health(self) -> dict[str, Any]:
        """The answer of /health-check; {} while nobody answers, or somebody else."""
        try:
            answer = self._health.get(f"{self.base_url}/health-check", timeout=HEALTH_TIMEOUT_S).json()
        except requests.RequestException:
            return {}
        return answer if isinstance(answer, dict) else {}

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait until setup is done. Raises EngineError with the reason if it fails, DeadlineError when it is late."""
        while True:
            if (returncode := self.returncode()) is not None:
                tail = "\n".join(readable_line(line) for line in self._process.ended_lines()[-20:])
                if not PORT_TAKEN.search(tail):
                    raise EngineError(f"The {self.mode} server ended with exit code {returncode}:\n{tail}")
                self._start_elsewhere()
            health = self.health()
            if health.get("status") in ("READY", "BUSY"):
                return
            if health.get("status") == "SETUP_FAILED":
                raise EngineError(f"The {self.mode} server's setup failed:\n{health['setup'].get('logs', '').strip()}")
            deadline.check()
            time.sleep(HEALTH_POLL_S)

    def _start_elsewhere(self) -> None:
        """Start again on another port: between our choice of one and the bind, another program may have taken it.

        Raises EngineError where the caller chose it, and when it happens again and again.
        """
        if not self._starts_left:
            raise _taken(self.port)
        self.stop()
        self._process = self._start(free_port())

    def call(self, inputs: Mapping[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """POST /predictions or /trainings and wait for the end; the answer has status, output, error, logs.

        Raises EngineError when the server stays busy with another call for FREE_SLOT_S seconds.
        """
        url = f"{self.base_url}/{'predictions' if self.mode == 'predict' else 'trainings'}"
        deadline = time.monotonic() + FREE_SLOT_S
        # Cog frees the slot of a call a moment after its answer, and says 409 Conflict until then.
        while (response := requests.post(url, json={"input": dict(inputs)}, timeout=timeout_s)).status_code == 409:
            if time.monotonic() > deadline:
                raise EngineError(f"The {self.mode} server is busy with another call: {response.text}")
            time.sleep(HEALTH_POLL_S)
        answer: dict[str, Any] = response.json()
        return answer

    def stop(self) -> None:
        """End the server and everything it started; harmless when it has ended."""
        self._health.close()
        self._process.stop(STOP_GRACE_S)


def _reached_at(host: str) -> str:
    """The host of a URL for a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]" if ":" in host else host


def _require_free(host: str, port: int) -> None:
    """Raise EngineError where a server cannot listen."""
    problems: list[OSError] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        found, problems = [], [error]
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As servers do: the last connections of one that has ended are in nobody's way.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(port) from error
            problems.append(error)
    # One address is enough: localhost has an IPv6 one also where the machine has no IPv6.
    if len(problems) > max(0, len(found) - 1):
        raise EngineError(
            f"No server can listen on {host}, port {port}: {problems[0].strerror}. Take an address of this machine "
            "(127.0.0.1 for this machine alone, 0.0.0.0 for all), and a port from 1024 on."
        )


def _taken(port: int) -> EngineError:
    return EngineError(f"Port {port} is taken: another program listens there. Stop that one, or choose another port.")


def readable_line(line: str) -> str:
    """Cog prints its log as JSON, a line each, with what our code printed inside; this is the text alone."""
    try:
        return str(json.loads(line)["fields"]["message"])
    except (ValueError, KeyError, TypeError):
        return line


def file_of_data_uri(uri: str) -> bytes:
    """The bytes of a base64 data: URI, the form in which a local Cog server gives files back (RFC 2397)."""
    head, _, body = uri.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError(f"not a base64 data: URI: {uri[:40]!r}")
    return base64.b64decode(body, validate=True)


def suffix_of_data_uri(uri: str) -> str:
    """The file ending for the media type of a data: URI, ".bin" where it is unknown."""
    kind = uri.removeprefix("data:").split(";", 1)[0].split(",", 1)[0]
    return mimetypes.guess_extension(kind, strict=False) or ".bin"
