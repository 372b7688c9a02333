"""What an answer's headers say of a file: whether it is one, its name, its length, how to ask for it again. Pure.

Rules: RFC 9110 (8.8 validators, 14.4 Content-Range), RFC 6266 and 8187 (Content-Disposition).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.message import Message
from email.utils import collapse_rfc2231_value, parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from comfyui.errors import DownloadError
from comfyui.weights.folders import safe_file_name
from comfyui.weights.http.opener import as_utf8
from comfyui.weights.http.refusals import refusal
from comfyui.weights.remote import Source


def check_answer(response: requests.Response, source: Source, *, status: int = 200) -> None:
    """Raise DownloadError unless the answer has this status and is a file, byte for byte."""
    if response.status_code != status:
        raise refusal(source, response.status_code, response.headers.get("Retry-After"))
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise DownloadError(
            f"{source.display_url} came with Content-Encoding {encoding:.100}, though none was asked for; its bytes "
            "cannot be checked against its length. Use another server.",
            url=source.display_url,
            status=status,
        )
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise refusal(source, 200, None)


def declared_size(response: requests.Response, source: Source) -> int | None:
    """The length of the body in bytes, None if it is not said. Raises DownloadError for what is no length."""
    text = response.headers.get("Content-Length")
    if text is None or "chunked" in response.headers.get("Transfer-Encoding", "").lower():
        return None
    if not re.fullmatch(r"\d{1,19}", text):
        raise DownloadError(
            f"{source.display_url} came with the Content-Length {text[:100]!r}, which is no length.",
            url=source.display_url,
            status=response.status_code,
        )
    return int(text)


def file_name(response: requests.Response, source: Source) -> str:
    """The safe name of the file: the source's own, else the server's, else the URL's; "" if there is none."""
    if source.name is not None:
        return source.name
    disposition = response.headers.get("Content-Disposition")
    given = safe_file_name(disposition_name(disposition)) if disposition else ""
    return given or safe_file_name(unquote(urlsplit(source.url).path))


def disposition_name(header: str) -> str:
    """The name in a Content-Disposition: filename*= before filename=, whatever their order (RFC 6266, 4.3).

    "" where there is none, or one that cannot be read.
    """
    try:
        return _disposition_name(header)
    except (ValueError, TypeError):
        # What the standard library makes of a header that was made to do harm, such as an unknown charset's.
        return ""


def _disposition_name(header: str) -> str:
    message = Message()
    message["Content-Disposition"] = as_utf8(header)
    parameters = message.get_params(failobj=[], header="Content-Disposition")
    names: list[Any] = [value for key, value in parameters if key.lower() == "filename"]
    # The standard library gives the value of filename*= as a tuple of charset, language and text.
    names.sort(key=lambda value: not isinstance(value, tuple))
    return collapse_rfc2231_value(names[0]) if names else ""


def validator_of(headers: Mapping[str, str]) -> str | None:
    """What If-Range may hold (RFC 9110, 13.1.5): a strong ETag, the Last-Modified date if there is none, else None."""
    etag = headers.get("ETag")
    if etag is not None:
        return etag if re.fullmatch(r'"[!#-~]*"', etag) else None
    date = headers.get("Last-Modified", "")
    try:
        parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return None
    return date


def total_of_range(response: requests.Response, first: int, last: int) -> int | None:
    """The whole length that the Content-Range of exactly these bytes gives; None if it is another range, or unknown."""
    found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", response.headers.get("Content-Range", "").strip())
    if not found or (int(found[1]), int(found[2])) != (first, last) or int(found[3]) <= last:
        return None
    return int(found[3])
