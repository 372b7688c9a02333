"""Which URLs this project will fetch: http and https, on the public internet, unless private ones are allowed.

URLs come from outside (training inputs, workflows, redirects), and this process stands inside somebody's network, so
without this a URL could read a cloud's metadata service or a neighbour's admin page. The policy is about one URL, so
every redirect must be put to it again. `check_url` looks a host's addresses up before the connection does, and a host
may answer differently the second time: whoever connects also puts the peer's address to `check_address`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from comfyui.errors import DownloadError

_DEFAULT_PORTS = {"http": 80, "https": 443}
# An IPv6 form that some networks translate into the IPv4 address in its last 32 bits (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Origin:
    """Whom a token may be sent to: the same scheme, host and port, or it is somebody else."""

    scheme: str
    host: str
    port: int


def display_url(url: str) -> str:
    """The URL without user name, query and fragment, any of which can hold a secret; fit for logs and manifests."""
    try:
        parts = urlsplit(url)
        if not parts.netloc and "@" in url:
            # Mistyped, such as https:/user:password@example.com: any of what is before the last "@" may be secret, and
            # a "?" or "#" may be part of it.
            parts = urlsplit(url.rpartition("@")[2])
        return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "").geturl()
    except ValueError:
        return "(a URL that cannot be read)"


def origin(url: str) -> Origin:
    """The origin of an http or https URL. Raises DownloadError for another scheme and for a URL without a host."""
    shown = display_url(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        # What urlsplit says may quote a password.
        raise DownloadError(f"{shown} is not a URL that can be read.", url=shown) from ValueError(type(e).__name__)
    if parts.scheme not in _DEFAULT_PORTS:
        seen = f"{parts.scheme}:" if parts.scheme else "no scheme"
        raise DownloadError(
            f"{shown} cannot be fetched: it has {seen}, and only http and https are accepted.", url=shown
        )
    # Parsers disagree about these characters, and so about which host a URL names.
    if not host or "\\" in url or " " in url or not url.isprintable():
        raise DownloadError(
            f"{shown!r:.300} cannot be fetched: it has no host, or a space, backslash or control character.", url=shown
        )
    return Origin(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme])


def check_url(url: str, *, allow_private: bool, via_proxy: bool = False) -> Origin:
    """Return the URL's origin if it may be fetched, or raise DownloadError.

    Looks the host up in DNS unless `allow_private`. `via_proxy` says that a proxy will look it up instead, so that a
    name unknown here is no fault.
    """
    found = origin(url)
    if allow_private:
        return found
    shown = display_url(url)
    try:
        answers = socket.getaddrinfo(found.host, found.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        if via_proxy:
            return found
        raise DownloadError(
            f"{shown} cannot be fetched: its host {found.host!r:.300} was not found ({e}). Check its spelling.",
            url=shown,
        ) from e
    for answer in answers:
        check_address(str(answer[4][0]), shown=shown)
    return found


def check_address(address: str, *, shown: str) -> None:
    """Raise DownloadError unless `address`, an IP as text, is a public one; `shown` is the URL to name."""
    if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
        raise DownloadError(
            f"{shown} is refused: its host is at {address}, which is not a public internet address. "
            "Set ALLOW_PRIVATE_URLS=1 if you run this yourself and mean it.",
            url=shown,
        )


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast
