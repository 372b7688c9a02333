"""Fetch what a workflow names by URL: the workflow itself, and files for inputs that take one. Small files only.

URLs here come from whoever sent the workflow, so each one, and each redirect, goes through the policy for URLs from
outside, and the connection is made to the very address that the policy saw. No token is ever sent.
"""

from __future__ import annotations

import asyncio
import binascii
import email.message
import errno
import hashlib
import io
import mimetypes
import re
import socket
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from comfyui.deadline import Deadline
from comfyui.errors import DownloadError, InputFileError
from comfyui.url_policy import check_address, check_url, display_url
from comfyui.weights.disk import require_room
from comfyui.workflow.node_classes import NodeClasses
from comfyui.workflow.parse import Node, Workflow

MAX_FILE_BYTES = 1024**3
MAX_WORKFLOW_BYTES = 32 * 1024**2
MAX_REDIRECTS = 8
TIMEOUT_S = 300.0
SILENCE_S = 30.0
AT_ONCE = 4
CHUNK_BYTES = 256 * 1024
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
FILE_ITSELF = "Give the link of the file itself."
REFERENCE = re.compile(r"(https?://|data:)", re.IGNORECASE)


def is_reference(value: object) -> bool:
    """Whether a value is a URL or a data: URI instead of a name."""
    return isinstance(value, str) and REFERENCE.match(value) is not None


async def fetch_workflow(reference: str, *, allow_private: bool) -> str:
    """The text at a URL or in a data: URI. Raises DownloadError or InputFileError."""
    if reference.lower().startswith("data:"):
        content, _ = read_data_uri(reference, "workflow_json")
    else:
        buffer = io.BytesIO()
        async with _session(allow_private=allow_private) as session:
            await _get(session, reference, buffer, MAX_WORKFLOW_BYTES, allow_private=allow_private)
        content = buffer.getvalue()
    if content.lstrip().startswith(b"<"):
        raise InputFileError(f"workflow_json: {_shown(reference)} is a web page, not a file. {FILE_ITSELF}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFileError("workflow_json leads to something that is not text; it takes a JSON file.") from error


async def fetch_media(
    workflow: Workflow,
    classes: NodeClasses,
    input_dir: Path,
    *,
    allow_private: bool,
    say: Callable[[str], None],
    deadline: Deadline | None = None,
) -> Workflow:
    """A copy of the workflow in which every URL or data: URI in an input that takes a file is a file's name.

    Which inputs take a file is what /object_info says of their class; text that happens to be a URL stays text. Each
    reference is fetched once, into `input_dir`, under a name of its own. Raises DownloadError, InputFileError,
    StorageError where the disk has no room, and DeadlineError when `deadline` comes before all is there.
    """
    wanted: dict[str, str] = {}
    for node in workflow.nodes.values():
        for name in _file_inputs(node, classes):
            wanted.setdefault(str(node.inputs[name]), f"Node {node.id} {node.title!r}, input {name}")
    if not wanted:
        return workflow
    limit = asyncio.Semaphore(AT_ONCE)
    names: dict[str, str] = {}

    async def fetch(session: aiohttp.ClientSession, reference: str, where: str) -> None:
        async with limit:
            names[reference] = await _fetch_one(session, reference, where, input_dir, allow_private=allow_private)
        say(f"{where}: {_shown(reference)} is there as {names[reference]}")

    try:
        async with (
            asyncio.timeout(deadline.remaining_s() if deadline else None),
            _session(allow_private=allow_private) as session,
            asyncio.TaskGroup() as group,
        ):
            for reference, where in wanted.items():
                group.create_task(fetch(session, reference, where))
    except TimeoutError as error:
        raise (deadline.error() if deadline else error) from error
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None

    def change(node: Node) -> Mapping[str, Any]:
        return {name: names[str(node.inputs[name])] for name in _file_inputs(node, classes)}

    return workflow.changed(change)


def _file_inputs(node: Node, classes: NodeClasses) -> list[str]:
    specs = classes.inputs(node.class_type)
    return [spec.name for spec in specs if spec.takes_file and is_reference(node.inputs.get(spec.name))]


async def _fetch_one(
    session: aiohttp.ClientSession, reference: str, where: str, input_dir: Path, *, allow_private: bool
) -> str:
    part = input_dir / f".{_digest(reference)}.part"
    try:
        with part.open("wb") as file:
            if reference.lower().startswith("data:"):
                content, kind = read_data_uri(reference, where)
                given = ""
                file.write(content)
            else:
                kind, given = await _get(
                    session, reference, file, MAX_FILE_BYTES, allow_private=allow_private, disk=input_dir
                )
        if kind == "text/html":
            shown = _shown(reference)
            raise InputFileError(f"{where}: {shown} is a web page, not a file. {FILE_ITSELF}")
        name = media_name(reference, given, kind)
        part.replace(input_dir / name)
        return name
    finally:
        part.unlink(missing_ok=True)


def media_name(reference: str, given: str, kind: str) -> str:
    """A safe, short file name that no other reference has; its ending fits `kind`, the media type, if it has none.

    The file's own name is kept for people to recognise: the server's (`given`), or the last part of the URL's path.
    """
    own = given or ("" if reference.lower().startswith("data:") else unquote(urlsplit(reference).path))
    path = PurePosixPath(own.replace("\\", "/"))
    stem = re.sub(r"[^\w-]+", "_", path.stem)[:60].strip("_") or "input"
    suffix = path.suffix.lower() if re.fullmatch(r"\.[a-z0-9]{1,5}", path.suffix.lower()) else ""
    return f"{stem}-{_digest(reference)}{suffix or mimetypes.guess_extension(kind) or ''}"


def read_data_uri(uri: str, where: str) -> tuple[bytes, str]:
    """The bytes and the media type of a data: URI (RFC 2397). Raises InputFileError naming `where` it stands."""
    head, comma, body = uri[len("data:") :].partition(",")
    parameters = head.split(";")
    kind = parameters[0].strip().lower() or "text/plain"
    if not comma:
        raise InputFileError(f"{where}: the data: URI has no comma, so no data.")
    if parameters[-1].strip().lower() != "base64":
        return unquote_to_bytes(body), kind
    try:
        return b64decode(re.sub(r"\s+", "", unquote(body)), validate=True), kind
    except (binascii.Error, ValueError) as error:
        raise InputFileError(f"{where}: the data: URI is not valid base64: {error}.") from error


class _PublicOnly(AbstractResolver):
    """Looks names up, and refuses addresses that are not public: the connection is made to what is checked here."""

    def __init__(self) -> None:
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for answer in found:
            check_address(answer["host"], shown=f"A URL on {host}")
        return found

    async def close(self) -> None:
        await self._inner.close()


def _session(*, allow_private: bool) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=None if allow_private else _PublicOnly())
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())


async def _get(
    session: aiohttp.ClientSession,
    url: str,
    sink: BinaryIO,
    max_bytes: int,
    *,
    allow_private: bool,
    disk: Path | None = None,
) -> tuple[str, str]:
    """Write the body at a URL into `sink`; returns its media type and the file name that the server gives (or "").

    `disk` is the folder of the sink, where it has one.
    """
    shown = display_url(url)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            await asyncio.to_thread(check_url, url, allow_private=allow_private)
            async with session.get(url, allow_redirects=False) as response:
                if response.status in REDIRECTS and "Location" in response.headers:
                    url = urljoin(url, response.headers["Location"])
                    continue
                if response.status != 200:
                    raise DownloadError(
                        f"{shown} could not be fetched: the server answered {response.status}. Check that the link "
                        "opens without a log-in.",
                        url=shown,
                        status=response.status,
                    )
                _check_length(response.content_length or 0, max_bytes, shown)
                if disk is not None:
                    require_room(disk, response.content_length or 0, shown)
                await _read(response, sink, max_bytes, shown)
                return response.content_type.lower(), _given_name(response)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        # What these say may quote the whole URL, with a signature in its query.
        reason = type(error).__name__
        raise DownloadError(f"{shown} could not be fetched: {reason}. Check the link.", url=shown) from None
    raise DownloadError(f"{shown} was redirected more than {MAX_REDIRECTS} times; use another link.", url=shown)


async def _read(response: aiohttp.ClientResponse, sink: BinaryIO, max_bytes: int, shown: str) -> None:
    total = 0
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        total += len(chunk)
        _check_length(total, max_bytes, shown)
        sink.write(chunk)


def _check_length(length: int, max_bytes: int, shown: str) -> None:
    if length > max_bytes:
        raise DownloadError(f"{shown} is larger than the {max_bytes >> 20} MiB that are taken here.", url=shown)


def _digest(reference: str) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()[:10]


def _given_name(response: aiohttp.ClientResponse) -> str:
    """The name in a Content-Disposition header (RFC 6266), "" without one."""
    message = email.message.Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    return message.get_filename() or ""


def _shown(reference: str) -> str:
    return "a data: URI" if reference.lower().startswith("data:") else display_url(reference)
