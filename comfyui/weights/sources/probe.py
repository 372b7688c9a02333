"""What any server says of a file before it is fetched: its name, size and validator, and whether it gives ranges.

Asked by a GET of the first byte: many signed links allow no HEAD.
"""

from __future__ import annotations

from dataclasses import dataclass

from comfyui.url_policy import display_url
from comfyui.weights.http.answers import check_answer, declared_size, file_name, total_of_range, validator_of
from comfyui.weights.http.opener import REQUEST_FAILURES, HttpOpener, OpenedResponse
from comfyui.weights.remote import RemoteFile, Source

_FIRST_BYTE = {"Range": "bytes=0-0"}


@dataclass(frozen=True)
class Probe:
    """What a server's headers say: a safe name ("" if none), the size in bytes or None, and the rest as RemoteFile."""

    name: str
    size: int | None
    validator: str | None
    ranges: bool


def probe(source: Source, url: str, opener: HttpOpener) -> Probe:
    """Ask `url` for its first byte. Raises DownloadError when the server refuses."""
    with opener.open(source, url, _FIRST_BYTE) as opened:
        response = opened.response
        if response.status_code == 206:
            check_answer(response, source, status=206)
            total = total_of_range(response, 0, 0)
            if total is not None and _is_one_byte(opened):
                return Probe(file_name(response, source), total, validator_of(response.headers), True)
        elif response.status_code != 416:
            return _whole(opened, source)
        elif response.headers.get("Content-Range", "").replace(" ", "") == "bytes*/0":
            return Probe(file_name(response, source), 0, None, False)
    # The server made something odd of the range.
    with opener.open(source, url) as opened:
        return _whole(opened, source)


def resolve_plain(source: Source, opener: HttpOpener) -> RemoteFile:
    """What is known of the file at a URL of no special kind. Raises DownloadError."""
    found = probe(source, source.url, opener)
    return RemoteFile(
        source=source,
        url=source.url,
        manifest_url=display_url(source.url),
        name=found.name,
        size=found.size,
        sha256=None,
        validator=found.validator,
        ranges=found.ranges,
    )


def _whole(opened: OpenedResponse, source: Source) -> Probe:
    check_answer(opened.response, source)
    size = declared_size(opened.response, source)
    return Probe(file_name(opened.response, source), size, validator_of(opened.response.headers), False)


def _is_one_byte(opened: OpenedResponse) -> bool:
    try:
        return len(opened.response.raw.read(2, decode_content=False)) == 1
    except REQUEST_FAILURES:
        return False
