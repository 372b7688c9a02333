"""A client of Cog's HTTP API (https://github.com/replicate/cog, docs/http.md): one prediction, from inputs to answer.

    PUT /predictions/ID ──────────────────────────────► answer          the server ends what its client has left
          409, 503: wait, ask again
    POST /our webhook ◄── logs, while it runs                            from a server on this machine only
    POST /predictions/ID/cancel                                          on Ctrl-C

The server must be one that a person named: its URL and token are theirs, and a token goes to it and nowhere else.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from base64 import b32encode
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from comfyui.errors import EngineError, RequestError
from comfyui.local.log_webhook import LogLines, log_webhook
from comfyui.url_policy import display_url, origin
from comfyui.weights.remote import is_token

CONNECT_TIMEOUT_S = 10.0
SHORT_ANSWER_S = 10.0
"""For /health-check and a cancel, which a server answers at once."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
_SAID_BYTES = 300
_NOT_NOW = (409, 503)
_LOST_STATES = ("SETUP_FAILED", "UNHEALTHY", "DEFUNCT")
"""What /health-check says of a server that will take no prediction any more (Cog starts no worker anew)."""
_COGS_WORDS = re.compile(r"^(?:Prediction failed: )?(?:Async prediction failed: )?(?:\w+Error: )?")


@dataclass(frozen=True)
class Answer:
    """How a prediction ended: `status` is "succeeded", "failed" or "canceled".

    `output` is what the model returned, with files as data: URIs, or as URLs where the server puts them elsewhere.
    """

    id: str
    status: str
    output: Any
    error: str
    logs: str
    metrics: Mapping[str, Any]

    def succeeded(self) -> Any:
        """The output. Raises EngineError with the prediction's own error if it has not succeeded."""
        if self.status != "succeeded":
            raise EngineError(self.error or f"The prediction has ended as {self.status!r}, and says nothing more.")
        return self.output


@dataclass(frozen=True)
class Endpoint:
    """A server of Cog's HTTP API, and the token that goes to it alone.

    Raises RequestError for a URL that is none, and for a token that others could read on its way.
    """

    url: str
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shown = display_url(self.url)
        parts = urlsplit(self.url) if origin(self.url) else None
        if parts is None or parts.username is not None or parts.query or parts.fragment:
            raise RequestError(
                f"{shown} was given with a user name, a query or a fragment; give the server's URL alone."
            )
        if self.token is None:
            return
        if not self.token or not is_token(self.token):
            raise RequestError(f"The token for {shown} is empty, or has characters that no token has.")
        self.check_secret(f"The token for {shown}")

    def check_secret(self, what: str) -> None:
        """Raise RequestError where others could read what is sent; `what` begins the sentence."""
        if not self.is_local and origin(self.url).scheme != "https":
            raise RequestError(
                f"{what} was not sent: over http:// everybody on the way could read it. Use https://, or an SSH tunnel "
                "to a port of this machine."
            )

    @property
    def is_local(self) -> bool:
        """Whether the server is reached by this machine's loopback."""
        host = origin(self.url).host
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


class PredictionsClient:
    """Runs predictions on an endpoint, one after the other. Use it as a context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._base = endpoint.url.rstrip("/")
        self._session = requests.Session()
        # A proxy of the environment is for the world outside.
        self._session.trust_env = not endpoint.is_local
        self._session.auth = _Token(endpoint.token)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _KeptAlive())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._session.close()

    def predict(
        self, inputs: Mapping[str, Any], *, say: Callable[[str], None], on_log: Callable[[str], None], wait_s: float
    ) -> Answer:
        """Run one prediction and wait for its end; a server that is busy or still starting gets `wait_s` seconds.

        `say` takes what this client itself has to tell. `on_log` takes the prediction's log, line by line: of a server
        on this machine while it runs, from another thread; of others at the end. Raises RequestError where the person
        must change the request or the endpoint, EngineError where the server fails. KeyboardInterrupt cancels the
        prediction on its way out.
        """
        prediction_id = b32encode(uuid4().bytes).decode().lower().rstrip("=")
        lines = LogLines(on_log)
        with ExitStack() as listening:
            body: dict[str, Any] = {"input": dict(inputs)}
            if self.endpoint.is_local:
                body["webhook"] = listening.enter_context(log_webhook(lines))
                body["webhook_events_filter"] = ["logs"]
            try:
                response = self._put(prediction_id, body, say, wait_s)
            except (RequestError, EngineError):
                raise  # Nothing runs, or not for us: a server ends what its client has left.
            except BaseException:
                self._cancel(prediction_id, say)
                raise
        answer = _answer(prediction_id, response, self._base)
        lines.feed(answer.logs, at_end=True)
        return answer

    def _put(
        self, prediction_id: str, body: Mapping[str, Any], say: Callable[[str], None], wait_s: float
    ) -> requests.Response:
        """The answer of the first request that is not put off. Raises as `predict` does."""
        end = time.monotonic() + wait_s
        pause_s = FIRST_PAUSE_S
        said = ""
        while True:
            response = self._send("PUT", f"/predictions/{prediction_id}", body, None)
            if response.status_code not in _NOT_NOW:
                return response
            why = self._why_not_now(response)
            if (left_s := end - time.monotonic()) <= 0:
                raise EngineError(f"{self._base} {why}, for {wait_s:g} s now. Try again later, or wait longer.")
            # A slot is free a moment after its prediction's answer: nothing to tell anybody.
            if why != said and pause_s > FIRST_PAUSE_S:
                say(f"{self._base} {why}; waiting for it, up to {wait_s:g} s.")
                said = why
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _why_not_now(self, refused: requests.Response) -> str:
        """What the server is doing instead, in words. Raises EngineError if it will not take a prediction any more."""
        try:
            state = self._send("GET", "/health-check", None, SHORT_ANSWER_S).json()["status"]
        except (ValueError, KeyError, TypeError):
            return f"answers {refused.status_code}"
        if state in _LOST_STATES:
            raise EngineError(
                f"{self._base} takes no predictions: its state is {state}. Its own log says why; stop it and start it "
                "again."
            )
        return "is still starting" if state == "STARTING" else "is busy with another prediction"

    def _cancel(self, prediction_id: str, say: Callable[[str], None]) -> None:
        try:
            response = self._send("POST", f"/predictions/{prediction_id}/cancel", None, SHORT_ANSWER_S)
        except (EngineError, RequestError) as error:
            say(f"The prediction could not be cancelled by request: {error}")
            return
        # 404: it has ended, or never began.
        if response.status_code not in (200, 404):
            say(f"The server answered {response.status_code} to the request to cancel the prediction.")

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, read_timeout_s: float | None
    ) -> requests.Response:
        """One request; a redirect is not followed, since a stranger would get the token. Raises as `predict` does."""
        url = self._base + path
        try:
            response = self._session.request(
                method, url, json=body, timeout=(CONNECT_TIMEOUT_S, read_timeout_s), allow_redirects=False
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _unreachable(self.endpoint, error) from error
        if response.is_redirect:
            where = display_url(response.headers["Location"])
            raise RequestError(f"{display_url(url)} has moved to {where}; give the URL of the server there.")
        return response


class _Token(AuthBase):
    """The token, or none: without an `auth` of its own, requests would take one from ~/.netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _KeptAlive(HTTPAdapter):
    """Connections that say now and then that they are there: routers forget those that are silent for minutes."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        options = [
            *urllib3.connection.HTTPConnection.default_socket_options,
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        ]
        if hasattr(socket, "TCP_KEEPIDLE"):
            options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30))
        super().init_poolmanager(*args, socket_options=options, **kwargs)


def _unreachable(endpoint: Endpoint, error: Exception) -> EngineError:
    shown = display_url(endpoint.url)
    if isinstance(error, requests.exceptions.SSLError):
        return EngineError(f"{shown} has no certificate that can be trusted.")
    if isinstance(error, requests.ReadTimeout):
        return EngineError(f"{shown} was reached, and gave no answer.")
    if "NewConnectionError" in repr(error) or isinstance(error, requests.ConnectTimeout):
        hint = (
            "Start one with ./scripts/serve, and wait until it says Ready." if endpoint.is_local else "Check the URL."
        )
        return EngineError(f"There is no server at {shown}. {hint}")
    return EngineError(f"{shown} broke the connection off before its answer was there.")


def _answer(prediction_id: str, response: requests.Response, base: str) -> Answer:
    """Read the answer to a prediction. Raises as `predict` does for one that was not run."""
    status, said = response.status_code, " ".join(response.content[:_SAID_BYTES].decode(errors="replace").split())
    if status in (401, 403):
        raise RequestError(f"{base} wants another token, or one at all: it answers {status}. {said}".rstrip())
    if status == 413:
        raise RequestError(f"The request is too large for {base}: {said}. Send a smaller input file.")
    if 400 <= status < 500:
        raise RequestError(f"{base} refuses the request with {status}: {said or 'it has no predictions'}.")
    try:
        value = response.json()
        if status != 200 or not isinstance(value, dict) or not isinstance(value["status"], str):
            raise ValueError(status)
    except (ValueError, KeyError) as error:
        raise EngineError(f"{base} does not answer as Cog's HTTP API does: {status} {said}") from error
    return Answer(
        id=prediction_id,
        status=value["status"],
        output=value.get("output"),
        error=_COGS_WORDS.sub("", str(value.get("error") or "")),
        logs=str(value.get("logs") or ""),
        metrics=value.get("metrics") or {},
    )
