"""One file from one server as a stream of chunks, where its name and size are taken from the answer itself.

`open_stream` gives a FileStream, whose `chunks` are read once, in order. This module does not look into the bytes
(`verify` does) and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from comfyui.errors import WeightsError
from comfyui.settings import Settings
from comfyui.weights.answers import check_answer, declared_size, file_name
from comfyui.weights.http import READ_TIMEOUT_S, REQUEST_FAILURES, HttpOpener, OpenedResponse, is_timeout, root_cause
from comfyui.weights.sources.model import Source

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class FileStream:
    """A file that a server has begun to send.

    `name` is the server's name for it, made safe ("" when there is none); `size` its declared length in bytes or None;
    `chunks(path)` its bytes in pieces of up to 1 MiB, which raises WeightsError naming `path` when they are fewer than
    declared, and DownloadError when the connection fails.
    """

    name: str
    size: int | None
    chunks: Callable[[str], Iterator[bytes]]


@contextmanager
def open_stream(source: Source, settings: Settings, *, read_timeout_s: float = READ_TIMEOUT_S) -> Iterator[FileStream]:
    """Ask for a file and give it as a stream, closed at the end. Raises DownloadError when the server refuses."""
    with ExitStack() as stack:
        opener = stack.enter_context(HttpOpener(settings, read_timeout_s=read_timeout_s))
        opened = stack.enter_context(opener.open(source, source.url))
        check_answer(opened.response, source)
        size = declared_size(opened.response, source)

        def chunks(path: str) -> Iterator[bytes]:
            return _read(opener, opened, source, path, size)

        yield FileStream(file_name(opened.response, source), size, chunks)


def _read(opener: HttpOpener, opened: OpenedResponse, source: Source, path: str, size: int | None) -> Iterator[bytes]:
    seen = 0
    failure: Exception | None = None
    try:
        for chunk in opened.response.iter_content(CHUNK_BYTES):
            seen += len(chunk)
            yield chunk
    except REQUEST_FAILURES as e:
        failure = e
    if failure is not None:
        # A last, partial chunk is not handed on before a failure, but it came.
        seen = max(seen, opened.response.raw.tell())
    # More bytes than declared never get here: http.client reads a declared length and no further. A file whose server
    # declares too little fails in its structure check.
    if size is not None and seen < size and not is_timeout(failure):
        raise WeightsError(
            f"{path} came only in part from {source.display_url}: expected {size} bytes, seen {seen}. Try again.",
            path=path,
            expected=f"{size} bytes",
            seen=f"{seen} bytes",
        ) from (failure and root_cause(failure))
    if failure is not None:
        raise opener.failure(failure, source, seen=seen) from root_cause(failure)
