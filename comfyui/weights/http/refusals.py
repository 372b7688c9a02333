"""What a server's refusal means for the person, in words, by site and status. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from comfyui.errors import DownloadError
from comfyui.weights.remote import Kind, Source


def refusal(source: Source, status: int, retry_after: str | None) -> DownloadError:
    """The error for an HTTP status that gives no file; 200 stands for a web page in place of one."""
    return DownloadError(
        f"{source.display_url} was not given: {_what(status)}. {_advice(source, status, retry_after)}",
        url=source.display_url,
        status=status,
    )


def _what(status: int) -> str:
    if status == 200:
        return "the server sent a web page instead of a file"
    names = {401: "log-in required", 403: "not allowed", 404: "not found", 410: "gone", 429: "too many requests"}
    name = names.get(status, "the server's own failure" if status >= 500 else "an answer without a file")
    return f"the server answered {status} ({name})"


def _advice(source: Source, status: int, retry_after: str | None) -> str:
    if status == 429:
        seconds = f" (the server says in {retry_after} s)" if (retry_after or "").isdigit() else ""
        return f"Wait and try again{seconds}."
    if status >= 500:
        return "Try again later; the link may still be right."
    if source.kind is Kind.HUGGING_FACE and status in (200, 401, 403):
        return _hugging_face_access(source)
    if source.kind is Kind.CIVITAI and status in (200, 401, 403):
        return _civitai_access(source)
    if status in (401, 403):
        return "The file is not public; use a link that needs no log-in."
    return "Open the link in a browser: it must lead to the file itself."


def _hugging_face_access(source: Source) -> str:
    page = _repo_page(source)
    if source.secret_headers:
        return (
            f"The token given has no access to it. If {page} is gated, accept its terms there with the token's "
            "account; if it is private, give a huggingface_read_token that may read it. The link may also name a repo "
            "that does not exist."
        )
    return (
        "No Hugging Face token was given: for a private or gated repo, give huggingface_read_token (and accept the "
        f"terms at {page} if it has some). The link may also name a repo that does not exist."
    )


def _civitai_access(source: Source) -> str:
    if source.secret_headers:
        return "The civitai_api_token given has no access to it: it may have expired, or the file be in early access."
    return "Its creator requires a log-in: give civitai_api_token (made in your account settings on civitai.com)."


def _repo_page(source: Source) -> str:
    parts = urlsplit(source.display_url)
    return f"{parts.scheme}://{parts.netloc}{parts.path.partition('/resolve/')[0]}"
