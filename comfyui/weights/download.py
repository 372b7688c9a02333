"""One file from one server as a stream of chunks: redirects, tokens, names, lengths and refusals.

`open_stream` gives a RemoteFile, whose `chunks` are read once, in order. What fetches ranges over several connections
can give the same RemoteFile; nothing after it needs to know. This module does not look into the bytes (`verify` does)
and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri, select_proxy

from comfyui.errors import DownloadError, WeightsError
from comfyui.settings import Settings
from comfyui.url_policy import check_address, check_url, display_url
from comfyui.weights.folders import safe_file_name
from comfyui.weights.refusals import refusal
from comfyui.weights.sources import Source

CHUNK_BYTES = 1024 * 1024
CONNECT_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 60.0
"""The longest a server may be silent; not a limit on the whole file, which may take hours."""
MAX_REDIRECTS = 10

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class RemoteFile:
    """A file that a server has begun to send.

    `name` is the server's name for it, made safe ("" when there is none); `size` its declared length in bytes or None;
    `chunks(path)` its bytes in pieces of up to 1 MiB, which raises WeightsError naming `path` when they are fewer than
    declared, and DownloadError when the connection fails.
    """

    name: str
    size: int | None
    chunks: Callable[[str], Iterator[bytes]]


@contextmanager
def open_stream(source: Source, settings: Settings, *, read_timeout_s: float = READ_TIMEOUT_S) -> Iterator[RemoteFile]:
    """Ask for a file and give it as a stream, closed at the end. Raises DownloadError when the server refuses."""
    with ExitStack() as stack:
        session = stack.enter_context(_session(settings))
        response = stack.enter_context(_follow(session, source, settings, read_timeout_s))
        _check_answer(response, source)
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        size = None if chunked else _declared_size(response, source)

        def chunks(path: str) -> Iterator[bytes]:
            return _read(response, source, path, size, read_timeout_s)

        yield RemoteFile(_name(response, source), size, chunks)


class _PeerCheck(HTTPAdapter):
    """Puts the address that a connection really reached to the URL policy, before a request is sent over it."""

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        pool: Any = super().get_connection_with_tls_context(request, verify, proxies, cert)
        if getattr(pool, "proxy", None) is None:
            pool.ConnectionCls = _checked_connection(pool.ConnectionCls)
        return pool


def _checked_connection(base: Any) -> Any:
    class Checked(base):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            check_address(self.sock.getpeername()[0], shown=f"A URL on {self.host}")

    return Checked


def _session(settings: Settings) -> requests.Session:
    session = requests.Session()
    # The environment's proxies count; the passwords of ~/.netrc are not for hosts that a URL from outside names.
    session.auth = _no_auth
    if not settings.allow_private_urls:
        for scheme in ("https://", "http://"):
            session.mount(scheme, _PeerCheck())
    return session


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _follow(session: requests.Session, source: Source, settings: Settings, read_timeout_s: float) -> requests.Response:
    """Send the request, and again for each redirect; the caller closes the response."""
    url, at_home = source.url, True
    for _ in range(MAX_REDIRECTS + 1):
        environment: Any = session.merge_environment_settings(url, {}, True, None, None)
        via_proxy = select_proxy(url, environment["proxies"]) is not None
        # Once away from home, a redirect back is a stranger's wish: the token stays out of it.
        here = check_url(url, allow_private=settings.allow_private_urls, via_proxy=via_proxy)
        at_home = at_home and here == source.home
        headers = {"Accept-Encoding": "identity", **(source.secret_headers if at_home else {})}
        failure: Exception | None = None
        try:
            request = session.prepare_request(requests.Request("GET", url, headers=headers))
            # Not session.send: it would read the whole body of a redirect.
            response = session.get_adapter(url).send(
                request, timeout=(CONNECT_TIMEOUT_S, read_timeout_s), **environment
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError) as e:
            failure = e
        if failure is not None:
            raise _connection_error(failure, url, source, read_timeout_s) from _root_cause(failure)
        location = response.headers.get("Location")
        if response.status_code not in _REDIRECTS or not location:
            return response
        response.close()
        url = _next_url(url, location, source)
    raise DownloadError(
        f"{source.display_url} was redirected more than {MAX_REDIRECTS} times; use another link.",
        url=source.display_url,
    )


def _next_url(url: str, location: str, source: Source) -> str:
    try:
        parts = urlsplit(urljoin(url, requote_uri(_as_utf8(location))))
    except ValueError:
        parts = None
    if parts is None:
        raise DownloadError(
            f"{source.display_url} was redirected to something that is not a URL; use another link.",
            url=source.display_url,
        )
    # A user name in a redirect is the server's, and is not sent on.
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def _check_answer(response: requests.Response, source: Source) -> None:
    if response.status_code != 200:
        raise refusal(source, response.status_code, response.headers.get("Retry-After"))
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise DownloadError(
            f"{source.display_url} came with Content-Encoding {encoding:.100}, though none was asked for; its bytes "
            "cannot be checked against its length. Use another server.",
            url=source.display_url,
            status=200,
        )
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise refusal(source, 200, None)


def _declared_size(response: requests.Response, source: Source) -> int | None:
    text = response.headers.get("Content-Length")
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,19}", text):
        raise DownloadError(
            f"{source.display_url} came with the Content-Length {text[:100]!r}, which is no length.",
            url=source.display_url,
            status=200,
        )
    return int(text)


def _name(response: requests.Response, source: Source) -> str:
    if source.name is not None:
        return source.name
    disposition = response.headers.get("Content-Disposition")
    if disposition:
        given = safe_file_name(_disposition_name(disposition))
        if given:
            return given
    return safe_file_name(unquote(urlsplit(source.url).path))


def _disposition_name(header: str) -> str:
    """The name in a Content-Disposition: filename*= before filename=, whatever their order (RFC 6266, 4.3)."""
    message = Message()
    message["Content-Disposition"] = _as_utf8(header)
    parameters = message.get_params(failobj=[], header="Content-Disposition")
    names: list[Any] = [value for key, value in parameters if key.lower() == "filename"]
    # The standard library gives the value of filename*= as a tuple of charset, language and text.
    names.sort(key=lambda value: not isinstance(value, tuple))
    return collapse_rfc2231_value(names[0]) if names else ""


def _as_utf8(header: str) -> str:
    # http.client reads headers as Latin-1, while servers that ignore the RFC send UTF-8.
    try:
        return header.encode("latin-1").decode("utf-8").replace("\n", " ").replace("\r", " ")
    except UnicodeError:
        return header


def _read(
    response: requests.Response, source: Source, path: str, size: int | None, read_timeout_s: float
) -> Iterator[bytes]:
    seen = 0
    failure: Exception | None = None
    try:
        for chunk in response.iter_content(CHUNK_BYTES):
            seen += len(chunk)
            yield chunk
    except (requests.RequestException, urllib3.exceptions.HTTPError) as e:
        failure = e
    if failure is not None:
        # A last, partial chunk is not handed on before a failure, but it came.
        seen = max(seen, response.raw.tell())
    # More bytes than declared never get here: http.client reads a declared length and no further. A file whose server
    # declares too little fails in its structure check.
    if size is not None and seen < size and not _is_timeout(failure):
        raise WeightsError(
            f"{path} came only in part from {source.display_url}: expected {size} bytes, seen {seen}. Try again.",
            path=path,
            expected=f"{size} bytes",
            seen=f"{seen} bytes",
        ) from (failure and _root_cause(failure))
    if failure is not None:
        raise _connection_error(failure, source.url, source, read_timeout_s, seen=seen) from _root_cause(failure)


def _connection_error(
    failure: Exception, url: str, source: Source, read_timeout_s: float, *, seen: int = 0
) -> DownloadError:
    cause = _root_cause(failure)
    if isinstance(failure, requests.ConnectTimeout):
        what = f"could not be reached within {CONNECT_TIMEOUT_S:g} s"
    elif _is_timeout(failure):
        what = f"sent nothing for {read_timeout_s:g} s"
    elif isinstance(failure, requests.exceptions.InvalidHeader):
        what = "answered with a header that cannot be read"
    elif isinstance(failure, requests.exceptions.SSLError):
        what = "has no certificate that can be trusted"
    else:
        what = f"broke the connection off after {seen} bytes" if seen else "could not be reached"
    via = "" if display_url(url) == source.display_url else f" (redirected to {display_url(url)})"
    return DownloadError(
        f"The server of {source.display_url}{via} {what}: {type(cause).__name__}. Check the link and try again.",
        url=source.display_url,
    )


def _is_timeout(failure: Exception | None) -> bool:
    timeouts = (TimeoutError, urllib3.exceptions.ReadTimeoutError, requests.Timeout)
    return failure is not None and isinstance(_root_cause(failure), timeouts)


def _root_cause(failure: BaseException) -> BaseException:
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
