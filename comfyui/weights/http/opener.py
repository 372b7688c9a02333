"""One GET request to a URL from outside: redirects by the policy, tokens to their own host alone, peers checked.

    open(source, url, headers) ──► policy ──► token, if at home ──► peer's address ──► redirects ──► OpenedResponse

Safe to use from several threads: each has a session of its own, whose connections stay open between requests. This
module does not judge an answer (`answers` does).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri, select_proxy

from comfyui.errors import DownloadError
from comfyui.settings import Settings
from comfyui.url_policy import check_address, check_url, display_url
from comfyui.weights.remote import Source

CONNECT_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 60.0
"""The longest a server may be silent; not a limit on the whole file, which may take hours."""
MAX_REDIRECTS = 10
REQUEST_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError)
"""What requests and urllib3 raise while they send a request or read an answer."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# The body of a redirect is read to its end if it is this short, so that the connection can be used again.
_SHORT_BODY_BYTES = 16 * 1024
_CONNECTIONS_KEPT = 8


@dataclass(frozen=True)
class OpenedResponse:
    """An answer that has begun, of any status but a redirect; `url` is what it came from and may hold secrets."""

    response: requests.Response = field(repr=False)
    url: str = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back; one whose body was not read to its end is closed."""
        self.response.close()


class HttpOpener:
    """Sends GET requests; use it as a context manager, one for each transfer. Times are in seconds."""

    def __init__(
        self,
        settings: Settings,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[requests.Session] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, source: Source, url: str, headers: Mapping[str, str] = _NO_HEADERS) -> OpenedResponse:
        """The answer to a GET of `url`, whatever its status, after redirects; the caller closes it.

        `source.secret_headers` go along only while the URL is at `source.home` and has not been elsewhere. Raises
        DownloadError where the policy or the network forbids it; for the network, its `__cause__` is an OSError, a
        RequestException or a urllib3 error that holds no URL.
        """
        session = self._session()
        at_home = True
        for _ in range(MAX_REDIRECTS + 1):
            environment = self._environment(session, url)
            via_proxy = select_proxy(url, environment["proxies"]) is not None
            # Once away from home, a redirect back is a stranger's wish: the token stays out of it.
            here = check_url(url, allow_private=self._settings.allow_private_urls, via_proxy=via_proxy)
            at_home = at_home and here == source.home
            sent = {"Accept-Encoding": "identity", **headers, **(source.secret_headers if at_home else {})}
            response = self._send(session, source, url, sent, environment)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return OpenedResponse(response, url)
            _discard(response)
            url = _next_url(url, location, source)
        raise DownloadError(
            f"{source.display_url} was redirected more than {MAX_REDIRECTS} times; use another link.",
            url=source.display_url,
        )

    def read(self, opened: OpenedResponse, length: int, source: Source) -> bytes:
        """The next `length` bytes of an answer's body, fewer only at its end. Raises DownloadError if it breaks off."""
        data = bytearray()
        failure: Exception | None = None
        try:
            while len(data) < length:
                piece = opened.response.raw.read(length - len(data), decode_content=False)
                if not piece:
                    break
                data += piece
        except REQUEST_FAILURES as e:
            failure = e
        if failure is not None:
            raise self.failure(failure, source, url=opened.url, seen=len(data)) from root_cause(failure)
        return bytes(data)

    def failure(self, error: Exception, source: Source, *, url: str | None = None, seen: int = 0) -> DownloadError:
        """What a failure while sending or reading means, in words; raise it from `root_cause(error)`.

        `url` is where it happened if that is not the source's own, `seen` how many bytes had come.
        """
        cause = root_cause(error)
        if isinstance(error, requests.ConnectTimeout):
            what = f"could not be reached within {self._timeouts_s[0]:g} s"
        elif is_timeout(error):
            what = f"sent nothing for {self._timeouts_s[1]:g} s"
        elif isinstance(error, requests.exceptions.InvalidHeader):
            what = "answered with a header that cannot be read"
        elif isinstance(error, requests.exceptions.SSLError):
            what = "has no certificate that can be trusted"
        else:
            what = f"broke the connection off after {seen} bytes" if seen else "could not be reached"
        there = display_url(url or source.url)
        via = "" if there == source.display_url else f" (redirected to {there})"
        return DownloadError(
            f"The server of {source.display_url}{via} {what}: {type(cause).__name__}. Check the link and try again.",
            url=source.display_url,
        )

    def close(self) -> None:
        """Close every thread's connections. No request may be under way."""
        with self._lock:
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close()

    def _environment(self, session: requests.Session, url: str) -> Any:
        """Proxies and certificates for the URL's host, from the environment, which is read once: reading it takes half
        the time of a request."""
        known: dict[str, Any] | None = getattr(self._mine, "environments", None)
        if known is None:
            known = self._mine.environments = {}
        host = url.partition("://")[2].partition("/")[0]
        if host not in known:
            known[host] = session.merge_environment_settings(url, {}, True, None, None)
        return known[host]

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._mine, "session", None)
        with self._lock:
            if session is None or session not in self._sessions:
                session = _new_session(self._settings)
                self._sessions.append(session)
                self._mine.session = session
        return session

    def _send(
        self, session: requests.Session, source: Source, url: str, headers: Mapping[str, str], environment: Any
    ) -> requests.Response:
        failure: Exception | None = None
        try:
            request = session.prepare_request(requests.Request("GET", url, headers=dict(headers)))
            # Not session.send: it would read the whole body of a redirect.
            return session.get_adapter(url).send(request, timeout=self._timeouts_s, **environment)
        except REQUEST_FAILURES as e:
            failure = e
        raise self.failure(failure, source, url=url) from root_cause(failure)


class _PeerCheck(HTTPAdapter):
    """Puts the address that a connection really reached to the URL policy, before a request is sent over it."""

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        pool: Any = super().get_connection_with_tls_context(request, verify, proxies, cert)
        # The pool is the same one for every request to a host.
        if getattr(pool, "proxy", None) is None and not hasattr(pool.ConnectionCls, "checks_its_peer"):
            pool.ConnectionCls = _checked_connection(pool.ConnectionCls)
        return pool


def _checked_connection(base: Any) -> Any:
    class Checked(base):  # type: ignore[misc]
        checks_its_peer = True

        def connect(self) -> None:
            super().connect()
            try:
                check_address(self.sock.getpeername()[0], shown=f"A URL on {self.host}")
            except BaseException:
                self.close()
                raise

    return Checked


def _new_session(settings: Settings) -> requests.Session:
    session = requests.Session()
    # The environment's proxies count; the passwords of ~/.netrc are not for hosts that a URL from outside names.
    session.auth = _no_auth
    adapter = HTTPAdapter if settings.allow_private_urls else _PeerCheck
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter(pool_connections=_CONNECTIONS_KEPT, pool_maxsize=_CONNECTIONS_KEPT))
    return session


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _discard(response: requests.Response) -> None:
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) <= _SHORT_BODY_BYTES:
        response.raw.drain_conn()
    response.close()


def _next_url(url: str, location: str, source: Source) -> str:
    try:
        parts = urlsplit(urljoin(url, requote_uri(as_utf8(location))))
    except ValueError:
        parts = None
    if parts is None:
        raise DownloadError(
            f"{source.display_url} was redirected to something that is not a URL; use another link.",
            url=source.display_url,
        )
    # A user name in a redirect is the server's, and is not sent on.
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def as_utf8(header: str) -> str:
    """A header's text as its sender meant it: http.client reads Latin-1, while many servers send UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8").replace("\n", " ").replace("\r", " ")
    except UnicodeError:
        return header


def is_timeout(failure: Exception | None) -> bool:
    """Whether a failed request or a broken-off answer failed by silence."""
    timeouts = (TimeoutError, urllib3.exceptions.ReadTimeoutError, requests.Timeout)
    return failure is not None and isinstance(root_cause(failure), timeouts)


def root_cause(failure: BaseException) -> BaseException:
    """The innermost reason of a failed request: the outer ones quote the whole URL, with the tokens in its query."""
    while True:
        inner = getattr(failure, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in reversed(failure.args) if isinstance(arg, BaseException)), None)
        if inner is None:
            break
        failure = inner
    if isinstance(failure, requests.RequestException):
        return ConnectionError(type(failure).__name__)
    return failure
