"""The files of a prediction, fetched before Replicate deletes them (after an hour).

The URLs are what a model gave as its output, so anything at all: http and https only, no address that is not public
(asked of each connection, redirects and changed DNS answers included), bounded in number, bytes and time, and names
that cannot lead out of the folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp

from comfyui.errors import DownloadError
from comfyui.url_policy import check_address, display_url, origin
from comfyui.weights.folders import safe_file_name

CHUNK_BYTES = 256 * 1024
SILENCE_S = 30.0
MAX_REDIRECTS = 5
_FOR_GOOD = (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.TooManyRedirects)
AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]


@dataclass(frozen=True)
class Limits:
    """How much is fetched for one prediction, and how hard it is tried."""

    files: int = 100
    total_bytes: int = 2 * 1024**3
    timeout_s: float = 900.0
    """For one file."""
    attempts: int = 4
    first_pause_s: float = 1.0
    """Before the second attempt; doubled before each further one."""


class _AgainError(Exception):
    """A failure that may be gone at the next attempt."""


def open_session(*, allow_private: bool, timeout_s: float) -> aiohttp.ClientSession:
    """A session that connects to public addresses alone, unless `allow_private`. It uses no proxy and no cookies."""

    def checked_socket(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        check_address(str(address[0]), shown="A URL of the output")
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=None if allow_private else checked_socket),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=SILENCE_S, sock_read=SILENCE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
    )


async def fetch_files(
    session: aiohttp.ClientSession, urls: tuple[str, ...], folder: Path, limits: Limits
) -> list[Mapping[str, Any]]:
    """Fetch each URL into `folder`; returns, in order, what became of it, for files.json.

    A file that cannot be had does not keep the next one away: its entry has an `error`. Raises OSError only for our
    own disk.
    """
    entries: list[Mapping[str, Any]] = []
    left = limits.total_bytes
    for number, url in enumerate(urls):
        shown = display_url(url)
        try:
            if number >= limits.files:
                raise DownloadError(f"Only the first {limits.files} files of a prediction are fetched.", url=shown)
            origin(url)  # judges the form of the URL
            name = _name(number, url)
            size, sha256 = await _fetch(session, url, folder / name, left, limits)
        except DownloadError as error:
            entries.append({"url": shown, "error": str(error)})
        else:
            left -= size
            entries.append({"url": shown, "file": f"{folder.name}/{name}", "size": size, "sha256": sha256})
    return entries


def _name(number: int, url: str) -> str:
    own = safe_file_name(unquote(urlsplit(url).path)) or "output"
    # Once more, for the length that the number has added.
    return safe_file_name(f"{number:03d}-{own}")


async def _fetch(
    session: aiohttp.ClientSession, url: str, target: Path, max_bytes: int, limits: Limits
) -> tuple[int, str]:
    """Size and SHA-256 of what is at `target` now. Raises DownloadError; a proven refusal is not tried again."""
    shown = display_url(url)
    pause_s = limits.first_pause_s
    for attempt in range(limits.attempts):
        if attempt:
            await asyncio.sleep(pause_s)
            pause_s *= 2
        try:
            return await _attempt(session, url, target, max_bytes)
        except _AgainError as error:
            why = str(error)
    raise DownloadError(f"{shown} could not be fetched in {limits.attempts} attempts: {why}.", url=shown)


async def _attempt(session: aiohttp.ClientSession, url: str, target: Path, max_bytes: int) -> tuple[int, str]:
    shown = display_url(url)
    part = target.with_name(".part")
    size, digest = 0, hashlib.sha256()
    try:
        async with session.get(url, max_redirects=MAX_REDIRECTS) as response:
            if response.status >= 500 or response.status == 429:
                raise _AgainError(f"the server answered {response.status}")
            if response.status != 200:
                raise DownloadError(f"{shown}: the server answered {response.status}.", url=shown)
            with part.open("wb") as file:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    size += len(chunk)
                    if size > max_bytes:
                        raise DownloadError(
                            f"{shown} is more than the {max_bytes} bytes that are left for this prediction.", url=shown
                        )
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        part.replace(target)
    except (aiohttp.ClientError, TimeoutError) as error:
        # Its text may quote the whole URL, with a signature in the query.
        if isinstance(error, _FOR_GOOD):
            raise DownloadError(f"{shown} could not be fetched: {type(error).__name__}.", url=shown) from None
        raise _AgainError(type(error).__name__) from None
    finally:
        part.unlink(missing_ok=True)
    return size, digest.hexdigest()
