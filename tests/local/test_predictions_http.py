"""The client of Cog's HTTP API, against answers that a real Cog server on this machine does not give.

Those it gives are in tests/e2e/test_generate.py. What stands here in its place is a gateway, as people put before a
Cog container: it wants a token, moves, breaks off, or is something else altogether.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from comfyui.errors import ComfyUIModelError, DownloadError, EngineError, RequestError
from comfyui.local import predictions_http
from comfyui.local.predictions_http import Answer, Endpoint, PredictionsClient

DONE = {"id": "x", "status": "succeeded", "output": ["data:,"], "logs": "one\ntwo", "metrics": {"predict_time": 1.5}}
TOKEN = "tok-3n"


@dataclass
class Asked:
    """One request: its method, path, headers and body."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Gateway:
    """A stand-in for a gateway before Cog: `answer` gives status, headers and body for each request."""

    answer: Callable[[Asked], tuple[int, Mapping[str, str], bytes]]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def gateway(answer: Callable[[Asked], tuple[int, Mapping[str, str], bytes]]) -> Iterator[Gateway]:
    standing = Gateway(answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, dict(self.headers), json.loads(body) if body else None)
            standing.asked.append(asked)
            status, headers, content = standing.answer(asked)
            if not status:
                return  # The connection closes without an answer.
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        standing.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield standing
        finally:
            server.shutdown()
            thread.join()


def always(status: int, body: object = b"", **headers: str) -> Callable[[Asked], tuple[int, Mapping[str, str], bytes]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda asked: (status, headers, content)


def predict(endpoint: Endpoint, *, wait_s: float = 0.0, said: list[str] | None = None) -> Answer:
    with PredictionsClient(endpoint) as client:
        say = (said if said is not None else []).append
        return client.predict({"a": 1}, say=say, on_log=lambda line: None, wait_s=wait_s)


def error_of(answer: Callable[[Asked], tuple[int, Mapping[str, str], bytes]], kind: type[ComfyUIModelError]) -> str:
    with gateway(answer) as standing, pytest.raises(kind) as caught:
        predict(Endpoint(standing.url))
    assert type(caught.value) is kind
    return str(caught.value).replace(standing.url, "URL")


def test_an_answer_is_read_with_its_logs_and_without_cogs_own_words() -> None:
    heard: list[str] = []
    with gateway(always(200, DONE)) as standing, PredictionsClient(Endpoint(standing.url + "/")) as client:
        answer = client.predict({"a": 1}, say=heard.append, on_log=heard.append, wait_s=0)
    assert (answer.succeeded(), answer.metrics, heard) == (["data:,"], {"predict_time": 1.5}, ["one", "two"])
    (asked,) = standing.asked
    assert (asked.method, asked.path) == ("PUT", f"/predictions/{answer.id}")
    assert asked.body["input"] == {"a": 1}
    assert asked.body["webhook_events_filter"] == ["logs"]
    failed = {
        "status": "failed",
        "error": "Prediction failed: Async prediction failed: WorkflowError: Node 3: Error: no",
    }
    with gateway(always(200, failed)) as standing, pytest.raises(EngineError) as caught:
        predict(Endpoint(standing.url)).succeeded()
    assert str(caught.value) == "Node 3: Error: no"
    with pytest.raises(EngineError, match="has ended as 'canceled'"):
        Answer("x", "canceled", None, "", "", {}).succeeded()


def test_a_token_goes_to_its_server_and_is_shown_nowhere(nobody: str) -> None:
    endpoint = Endpoint("http://127.0.0.1:1", TOKEN)
    assert TOKEN not in repr(endpoint)
    with gateway(always(200, DONE)) as standing:
        predict(Endpoint(standing.url, TOKEN))
    assert standing.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"
    with pytest.raises(EngineError) as caught:
        predict(Endpoint(nobody, TOKEN))
    assert TOKEN not in str(caught.value)


def test_a_redirect_is_not_followed_since_the_token_is_not_for_there() -> None:
    with gateway(always(200, DONE)) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            moved = always(status, Location=f"{elsewhere.url}/predictions/x?key=secret")
            with gateway(moved) as standing, pytest.raises(RequestError) as caught:
                predict(Endpoint(standing.url, TOKEN))
            assert f"has moved to {elsewhere.url}/predictions/x; give the URL" in str(caught.value)
        assert elsewhere.asked == []


def test_no_token_of_the_netrc_file_and_no_proxy_comes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n", "utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", nobody)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert requests.utils.get_netrc_auth("http://127.0.0.1") == ("me", "secret")
    with gateway(always(200, DONE)) as standing:
        predict(Endpoint(standing.url))
    assert "Authorization" not in standing.asked[0].headers


@pytest.mark.parametrize(
    ("url", "token", "said"),
    [
        ("http://gpu.example", TOKEN, "The token for http://gpu.example was not sent: over http://"),
        ("https://gpu.example", "", "is empty, or has characters that no token has"),
        ("https://gpu.example", "a b", "is empty, or has characters that no token has"),
        ("https://gpu.example", "a\r\nX: y", "is empty, or has characters that no token has"),
        ("https://me:secret@gpu.example", None, "https://gpu.example was given with a user name"),
        ("https://gpu.example/?key=secret", None, "https://gpu.example/ was given with a user name, a query"),
    ],
)
def test_an_endpoint_that_would_give_a_secret_away_is_refused(url: str, token: str | None, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        Endpoint(url, token)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:5000", "ftp://a.b", "http://", "file:///etc"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(DownloadError):
        Endpoint(url)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:5000", True),
        ("http://localhost:5000", True),
        ("http://[::1]:5000", True),
        ("http://127.9.9.9", True),
        ("https://gpu.example", False),
        ("http://localhost.gpu.example", False),
        ("http://192.168.0.7:5000", False),
    ],
)
def test_which_servers_are_on_this_machine(url: str, local: bool) -> None:
    assert Endpoint(url).is_local is local


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, b"no token", RequestError, "URL wants another token, or one at all: it answers 401. no token"),
        (403, b"", RequestError, "URL wants another token, or one at all: it answers 403."),
        (404, b"", RequestError, "URL refuses the request with 404: it has no predictions."),
        (
            413,
            b"length limit",
            RequestError,
            "The request is too large for URL: length limit. Send a smaller input file.",
        ),
        (422, b'{"detail": "seed"}', RequestError, 'URL refuses the request with 422: {"detail": "seed"}.'),
        (500, b"<h1>oh</h1>", EngineError, "URL does not answer as Cog's HTTP API does: 500 <h1>oh</h1>"),
        (200, b"<h1>hello</h1>", EngineError, "URL does not answer as Cog's HTTP API does: 200 <h1>hello</h1>"),
        (200, b"[]", EngineError, "URL does not answer as Cog's HTTP API does: 200 []"),
        (200, b'{"id": 7}', EngineError, 'URL does not answer as Cog\'s HTTP API does: 200 {"id": 7}'),
        (202, b'{"status": "x"}', EngineError, 'URL does not answer as Cog\'s HTTP API does: 202 {"status": "x"}'),
        (0, b"", EngineError, "URL broke the connection off before its answer was there."),
    ],
)
def test_what_is_no_answer_says_who_must_act(
    status: int, body: bytes, kind: type[ComfyUIModelError], said: str
) -> None:
    assert error_of(always(status, body), kind) == said


def test_no_server_names_the_script_that_starts_one(nobody: str) -> None:
    with pytest.raises(EngineError) as caught:
        predict(Endpoint(nobody))
    assert str(caught.value) == (
        f"There is no server at {nobody}. Start one with ./scripts/serve, and wait until it says Ready."
    )


@pytest.mark.parametrize("state", ["SETUP_FAILED", "UNHEALTHY", "DEFUNCT"])
def test_a_server_that_is_lost_is_not_waited_for(state: str) -> None:
    def answer(asked: Asked) -> tuple[int, Mapping[str, str], bytes]:
        return (200, {}, json.dumps({"status": state}).encode()) if asked.method == "GET" else (503, {}, b"")

    with gateway(answer) as standing, pytest.raises(EngineError, match=f"takes no predictions: its state is {state}"):
        predict(Endpoint(standing.url), wait_s=1000)


@pytest.mark.parametrize(
    ("status", "health", "why"),
    [
        (409, {"status": "BUSY"}, "is busy with another prediction"),
        (503, {"status": "STARTING"}, "is still starting"),
        (503, "nonsense", "answers 503"),
    ],
)
def test_a_server_that_is_busy_is_waited_for_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, status: int, health: object, why: str
) -> None:
    monkeypatch.setattr(predictions_http, "FIRST_PAUSE_S", 0.001)
    puts = iter([status] * 5 + [200])

    def answer(asked: Asked) -> tuple[int, Mapping[str, str], bytes]:
        if asked.method == "GET":
            return 200, {}, json.dumps(health).encode()
        return next(puts), {}, json.dumps(DONE).encode()

    said: list[str] = []
    with gateway(answer) as standing:
        assert predict(Endpoint(standing.url), wait_s=60, said=said).status == "succeeded"
    assert said == [f"{standing.url} {why}; waiting for it, up to 60 s."]
    ids = {asked.path for asked in standing.asked if asked.method == "PUT"}
    assert len(ids) == 1


def test_patience_ends() -> None:
    with gateway(always(409, {"status": "BUSY"})) as standing, pytest.raises(EngineError) as caught:
        predict(Endpoint(standing.url), wait_s=0.05)
    assert str(caught.value).endswith(
        "is busy with another prediction, for 0.05 s now. Try again later, or wait longer."
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, []),
        (404, []),
        (500, ["The server answered 500 to the request to cancel the prediction."]),
        (0, ["The prediction could not be cancelled by request: URL broke the connection off before its answer"]),
    ],
)
def test_ctrl_c_cancels_the_prediction_and_says_if_that_could_not_be_done(
    status: int, expected: list[str], ctrl_c: Callable[[], None]
) -> None:
    cancelled = threading.Event()

    def answer(asked: Asked) -> tuple[int, Mapping[str, str], bytes]:
        if asked.method == "POST":
            cancelled.set()
            return status, {}, b"{}"
        # The main thread waits for our answer.
        ctrl_c()
        cancelled.wait(30)
        return 0, {}, b""

    said: list[str] = []
    with gateway(answer) as standing:
        with pytest.raises(KeyboardInterrupt):
            predict(Endpoint(standing.url), said=said)
        put, cancel = standing.asked
    assert (cancel.method, cancel.path) == ("POST", f"{put.path}/cancel")
    assert len(said) == len(expected)
    assert all(line.replace(standing.url, "URL").startswith(words) for line, words in zip(said, expected, strict=True))


def test_no_webhook_is_asked_for_from_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "is_local", False)
    with gateway(always(200, DONE)) as standing:
        predict(Endpoint(standing.url))
    assert standing.asked[0].body == {"input": {"a": 1}}
