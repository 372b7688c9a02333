"""The way of each request of the official client: to its own host alone, patient where that is safe, explained if not.

The client by itself retries only GET on 429, 503 and 504, forgets Retry-After for a POST, and sends its token to
whatever absolute URL an answer holds (replicate 1.0.7, client.py). It wraps the transport it is given, so the policy
of this project lives here, below it, and is the only one: what is not mended here is raised as a ServiceError. It does
not know every status that the API has, so what it must not see is put into its words here, too.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from requests.utils import get_environ_proxies, select_proxy

from comfyui.errors import DownloadError, RequestError
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.terminal import printable_line
from comfyui.url_policy import display_url, origin

TRIES = 9
MAX_WAIT_S = 30.0
MAX_RETRY_AFTER_S = 300.0
"""A longer wait is not waited for; whoever asks for one is told."""
TIMEOUTS_S = {"connect": 20.0, "read": 60.0, "write": 60.0, "pool": 60.0}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_WAYS_OUT = {
    401: "Make a token at https://replicate.com/account/api-tokens and give it in REPLICATE_API_TOKEN or with "
    "--token-file FILE.",
    402: "Add credit or a payment method at https://replicate.com/account/billing.",
    403: "Use a token of the account that owns the model.",
    404: "Check the owner, the name and the id; what is private is only there for its owner's token.",
}


@dataclass(frozen=True)
class Problem:
    """What an answer of 400 or more says of itself: the `detail` of its body, and the seconds it asks to wait."""

    status: int
    detail: str
    retry_after_s: float | None


class PatientTransport(httpx.BaseTransport):
    """Sends a request up to TRIES times; whole answers come back, or a ServiceError is raised.

    Again is tried: a request that did not reach the server; any request answered 429, after the time that it names;
    and GET on a lost connection or 5xx. A POST that may have arrived is never sent twice: it may cost money.
    `first_wait_s` doubles with each try, up to MAX_WAIT_S.
    """

    def __init__(
        self,
        base_url: str,
        say: Callable[[str], None],
        *,
        first_wait_s: float,
        sleep: Callable[[float], None] = time.sleep,
        inner: httpx.BaseTransport | None = None,
    ) -> None:
        self._home = origin(base_url)
        self._say = say
        self._first_wait_s = first_wait_s
        self._sleep = sleep
        self._inner = inner or httpx.HTTPTransport(proxy=proxy_for(base_url))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The whole answer to a request, below 400. Raises ServiceError."""
        self._check_host(str(request.url))
        # The client asks for no time limit at all where it uploads a file.
        request.extensions = {**request.extensions, "timeout": TIMEOUTS_S}
        for attempt in itertools.count(1):
            try:
                response = self._inner.handle_request(request)
                response.read()
            except httpx.TransportError as error:
                if attempt == TRIES or not (request.method in _SAFE_METHODS or isinstance(error, _NEVER_SENT)):
                    raise _unreachable(request, error) from None
                self._wait(attempt, f"No answer from Replicate ({type(error).__name__})", None)
                continue
            if response.status_code < 400:
                return _in_known_words(response)
            problem = read_problem(response, request.headers.get("Authorization", ""))
            again = problem.status == 429 or (problem.status >= 500 and request.method in _SAFE_METHODS)
            if attempt == TRIES or not again or (problem.retry_after_s or 0) > MAX_RETRY_AFTER_S:
                raise _refused(request, problem)
            self._wait(attempt, f"Replicate answers {problem.status}", problem.retry_after_s)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()

    def _check_host(self, url: str) -> None:
        try:
            home = origin(url) == self._home
        except DownloadError:
            home = False
        if not home:
            raise ServiceError(
                f"An answer of Replicate leads to {display_url(url)}, and its token goes to {self._home.host} alone. "
                "Nothing was sent.",
                service="Replicate",
            )

    def _wait(self, attempt: int, what: str, asked_s: float | None) -> None:
        wait_s = asked_s if asked_s is not None else min(MAX_WAIT_S, self._first_wait_s * 2 ** (attempt - 1))
        self._say(f"{what}; trying again in {wait_s:.3g} s")
        self._sleep(wait_s)


def proxy_for(base_url: str) -> str | None:
    """The proxy that the environment names for a server; None where it names none, or NO_PROXY leaves the server out.

    httpx looks for it only where it makes its transport itself. Raises RequestError for one that cannot be used.
    """
    proxy: str | None = select_proxy(base_url, get_environ_proxies(base_url))
    if proxy is None:
        return None
    if "://" not in proxy:
        # curl and requests take HOST:PORT, too.
        proxy = f"http://{proxy}"
    scheme = urlsplit(proxy).scheme
    if scheme not in ("http", "https"):
        # Not the whole URL: it may hold a password.
        raise RequestError(
            f"The environment names a proxy of the kind {scheme}:// for {display_url(base_url)}, and only http:// and "
            "https:// are understood here. Set HTTPS_PROXY to one of these, or the host in NO_PROXY."
        )
    return proxy


def _in_known_words(response: httpx.Response) -> httpx.Response:
    """The answer, with runs that were aborted called canceled.

    The client (1.0.7) takes no answer that has that status in it, a list of the account's runs included:
    https://github.com/replicate/replicate-python/pull/449.
    """
    if b'"aborted"' not in response.content:
        return response
    try:
        body = json.loads(response.content)
    except ValueError:
        return response
    found = body if isinstance(body, dict) else {}
    listed = found.get("results")
    for run in listed if isinstance(listed, list) else [found]:
        if isinstance(run, dict) and run.get("status") == "aborted":
            run |= {"status": "canceled", "error": run.get("error") or "It was aborted: it could not begin in time."}
    return httpx.Response(response.status_code, json=body)


def read_problem(response: httpx.Response, secret: str) -> Problem:
    """What an error of Replicate's API says (a problem document, RFC 9457, with `retry_after` on 429).

    `secret` is the Authorization header that was sent; it is taken out of the words, should they quote it.
    """
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    found = body if isinstance(body, dict) else {}
    detail = str(found.get("detail") or found.get("title") or response.reason_phrase)
    token = secret.removeprefix("Bearer ")
    detail = detail.replace(token, "…") if token else detail
    asked = [response.headers.get("Retry-After"), found.get("retry_after")]
    waits = [wait for value in asked if (wait := _seconds(value)) is not None]
    return Problem(response.status_code, printable_line(" ".join(detail.split()))[:1000], max(waits) if waits else None)


def _seconds(value: object) -> float | None:
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _refused(request: httpx.Request, problem: Problem) -> ServiceError:
    if problem.status == 429:
        way_out = "Replicate limits how often it may be asked; wait a while and try again."
    elif problem.status >= 500:
        way_out = "That is Replicate's own trouble, see https://www.replicatestatus.com; try again later."
        if request.method not in _SAFE_METHODS:
            way_out = f"That is Replicate's own trouble, see https://www.replicatestatus.com.{_doubt(request)}"
    else:
        way_out = _WAYS_OUT.get(problem.status, "")
    return ServiceError(
        f"Replicate refused {_named(request)} with {problem.status}: {problem.detail.rstrip('.')}. {way_out}".rstrip(),
        service="Replicate",
        status=problem.status,
        detail=problem.detail,
    )


def _unreachable(request: httpx.Request, error: httpx.TransportError) -> ServiceError:
    sent = "" if isinstance(error, _NEVER_SENT) else " after the request was sent"
    in_doubt = sent and request.method not in _SAFE_METHODS
    way_out = _doubt(request) if in_doubt else " Check the network, and try again later."
    return ServiceError(
        f"Replicate did not answer {_named(request)}{sent}: {type(error).__name__}.{way_out}", service="Replicate"
    )


def _doubt(request: httpx.Request) -> str:
    """What a request that may have been done leaves to look at: only a new run costs money."""
    kind = request.url.path.rpartition("/")[2]
    if kind not in ("trainings", "predictions"):
        return " It may have arrived all the same."
    return f" It may have arrived all the same: look at https://replicate.com/{kind} before you start another."


def _named(request: httpx.Request) -> str:
    return f"{request.method} {request.url.path}"
