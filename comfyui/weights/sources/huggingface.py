"""What Hugging Face says of a file before it is fetched: commit, size, and the SHA-256 of what Git LFS or Xet keeps.

huggingface_hub asks (a HEAD of the file's link: `X-Repo-Commit`, `X-Linked-Size`, `X-Linked-ETag`), so that mirrors and
renamed repos work as they do for everybody; the same request proves that the token may read the file. The library's
own habits are kept out: no token of this machine, no telemetry, no request that goes elsewhere, no wait without end.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata
from requests.utils import get_environ_proxies, select_proxy

from comfyui.errors import DownloadError
from comfyui.settings import Settings
from comfyui.url_policy import Origin, check_url, display_url, origin
from comfyui.weights.folders import safe_file_name
from comfyui.weights.http.opener import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, HttpOpener
from comfyui.weights.http.refusals import refusal
from comfyui.weights.judge.formats import GGUF_EXTENSIONS, PICKLE_EXTENSIONS, SAFETENSORS_EXTENSIONS
from comfyui.weights.remote import HubFile, RemoteFile, Source
from comfyui.weights.sources.hub_links import file_url, page_url
from comfyui.weights.sources.probe import probe

_USER_AGENT = {"user-agent": "comfyui-cog"}
_SAFE_EXTENSIONS = SAFETENSORS_EXTENSIONS + GGUF_EXTENSIONS
_NAMES_SHOWN = 12


def resolve_hugging_face(source: Source, hub: HubFile, settings: Settings, opener: HttpOpener) -> RemoteFile:
    """What is known of a file on Hugging Face, pinned to its commit. Raises DownloadError."""
    with _asking(source, settings):
        asking = _Asking(source, settings)
        path, notices = (hub.path, ()) if hub.path is not None else asking.only_weights_file(hub)
        found = asking.metadata(hub, path)
    url = file_url(settings.hf_endpoint, hub, path, found.commit)
    named = replace(source, name=source.name or safe_file_name(path))
    served = probe(named, url, opener)
    if None not in (found.size, served.size) and found.size != served.size:
        raise DownloadError(
            f"{display_url(url)} is {found.size} bytes long by its repo, but its server gives {served.size}. "
            "Try again later.",
            url=display_url(url),
        )
    if found.commit is None:
        notices = (*notices, f"{source.display_url}: its server does not say which commit it is, so it is not pinned.")
    return RemoteFile(
        source=named,
        url=url,
        manifest_url=display_url(url),
        name=served.name,
        size=found.size if found.size is not None else served.size,
        sha256=found.sha256,
        validator=served.validator,
        ranges=served.ranges,
        notices=notices,
    )


@dataclass(frozen=True)
class _Metadata:
    commit: str | None
    size: int | None
    sha256: str | None


class _Asking:
    """Questions to the hub about one source. Every method raises DownloadError."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self._source = source
        self._endpoint = settings.hf_endpoint
        authorization = source.secret_headers.get("Authorization", "")
        # False, not None: None would take the token of whoever is logged in on this machine.
        self._token: str | bool = authorization.removeprefix("Bearer ") or False

    def metadata(self, hub: HubFile, path: str) -> _Metadata:
        try:
            found = get_hf_file_metadata(
                file_url(self._endpoint, hub, path),
                token=self._token,
                timeout=READ_TIMEOUT_S,
                headers=dict(_USER_AGENT),
                endpoint=self._endpoint,
            )
        except _HUB_FAILURES as e:
            raise self._explained(e, hub, path) from _cause(e)
        # The ETag of a file in Git itself is its 40-digit Git id.
        sha256 = found.etag if re.fullmatch(r"[0-9a-f]{64}", found.etag or "") else None
        commit = found.commit_hash if re.fullmatch(r"[0-9a-f]{40,64}", found.commit_hash or "") else None
        return _Metadata(commit, found.size, sha256)

    def only_weights_file(self, hub: HubFile) -> tuple[str, tuple[str, ...]]:
        """The one weights file of the repo, with the sentence that says so; safetensors and GGUF before pickles."""
        below = f"{hub.folder}/" if hub.folder else ""
        names = [name for name in self._names(hub) if name.startswith(below)]
        weights = _with_extension(names, _SAFE_EXTENSIONS) or _with_extension(names, PICKLE_EXTENSIONS)
        if len(weights) == 1:
            return weights[0], (f"{self._source.display_url}: its one weights file is {weights[0]}.",)
        said = f"has {len(weights)} weight files: {_listed(weights)}" if weights else "has no weight file"
        example = weights[0] if weights else "FILE.safetensors"
        raise DownloadError(
            f"{self._source.display_url} {said}. Name one file, as in hf://{_hf_prefix(hub)}/{example}.",
            url=self._source.display_url,
        )

    def _names(self, hub: HubFile) -> list[str]:
        api = HfApi(endpoint=self._endpoint, token=self._token, headers=dict(_USER_AGENT))
        try:
            info = api.repo_info(
                hub.repo_id, repo_type=hub.repo_type, revision=hub.revision, timeout=READ_TIMEOUT_S, token=self._token
            )
        except _HUB_FAILURES as e:
            raise self._explained(e, hub, None) from _cause(e)
        return [sibling.rfilename for sibling in getattr(info, "siblings", None) or ()]

    def _explained(self, error: Exception, hub: HubFile, path: str | None) -> DownloadError:
        source, page = self._source, page_url(self._endpoint, hub)
        response = getattr(error, "response", None)
        status = response.status_code if response is not None else None

        def said(text: str) -> DownloadError:
            return DownloadError(f"{source.display_url} was not given: {text}", url=source.display_url, status=status)

        if isinstance(error, errors.GatedRepoError):
            return said(_gated(page, given=bool(self._token)))
        if isinstance(error, errors.DisabledRepoError):
            return said(f"Hugging Face has disabled {page}. Use another source.")
        if isinstance(error, errors.EntryNotFoundError):
            return said(f"there is no {path!r:.300} in {page} at {hub.revision!r:.100}.{self._near(hub, path or '')}")
        if isinstance(error, errors.RevisionNotFoundError):
            return said(f"{page} has no branch, tag or commit {hub.revision!r:.100}. Most repos have main.")
        if isinstance(error, errors.RepositoryNotFoundError) or (status in (401, 403) and not self._token):
            return said(_not_seen(page, given=bool(self._token)))
        if status == 401:
            return said(
                "the huggingface_read_token is not valid. It may have expired, been revoked or been copied in part; "
                "make a new one at https://huggingface.co/settings/tokens."
            )
        if status == 403:
            return said(
                f"the huggingface_read_token has no access to {page}. A fine-grained token needs the permission to "
                "read it, and to read gated repos if it is gated."
            )
        if status is not None:
            return refusal(source, status, response.headers.get("Retry-After") if response is not None else None)
        if isinstance(error, errors.HFValidationError):
            return said(f"{hub.repo_id!r:.200} cannot be the name of a repo. Copy the link from its page.")
        if isinstance(error, (ValueError, KeyError, TypeError)):
            return said(f"{self._endpoint} did not answer as Hugging Face does. Check HF_ENDPOINT.")
        what = "is silent" if isinstance(error, httpx2.TimeoutException) else "could not be reached"
        return said(f"{self._endpoint} {what} ({type(error).__name__}). Try again.")

    def _near(self, hub: HubFile, path: str) -> str:
        try:
            names = self._names(hub)
        except DownloadError:
            return " Check the link."
        weights = _with_extension(names, _SAFE_EXTENSIONS + PICKLE_EXTENSIONS)
        by_stem = {_stem(name): name for name in reversed(weights)}
        near = [by_stem[stem] for stem in difflib.get_close_matches(_stem(path), by_stem, n=3)]
        if near:
            return f" Did you mean {' or '.join(map(repr, near))}?"
        return f" Its weight files are: {_listed(weights)}." if weights else " It has no weight files."


def _gated(page: str, *, given: bool) -> str:
    if given:
        return (
            f"it is gated, and the token's account may not read it yet. Accept the terms at {page} with that account; "
            "a fine-grained token also needs the permission to read gated repos."
        )
    return f"it is gated. Accept the terms at {page}, then give that account's huggingface_read_token."


def _not_seen(page: str, *, given: bool) -> str:
    if given:
        return (
            f"there is no {page} that the token given can read. Check the name; if it is private, give a "
            "huggingface_read_token that may read it."
        )
    return (
        f"{page} does not exist, or is private and needs a token. Check the name; if it is private, give "
        "huggingface_read_token."
    )


def _with_extension(names: Sequence[str], extensions: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(extensions)]


def _stem(path: str) -> str:
    return PurePosixPath(path).stem.lower()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _hf_prefix(hub: HubFile) -> str:
    kind = "" if hub.repo_type == "model" else f"{hub.repo_type}s/"
    return f"{kind}{hub.repo_id}" + ("" if hub.revision == "main" else f"@{hub.revision}")


# What huggingface_hub and its HTTP library raise on purpose, and what it raises for JSON that is not the hub's.
_HUB_FAILURES = (
    *(errors.HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL),
    *(ValueError, KeyError, TypeError),
)


def _cause(error: Exception) -> Exception:
    # The library's own texts quote whole URLs and the server's words.
    kind = ConnectionError if isinstance(error, httpx2.HTTPError) else ValueError
    return kind(type(error).__name__)


@dataclass(frozen=True)
class _Policy:
    source: Source
    home: Origin
    allow_private: bool


_policy: ContextVar[_Policy | None] = ContextVar("_policy", default=None)


@contextmanager
def _asking(source: Source, settings: Settings) -> Iterator[None]:
    reset = _policy.set(_Policy(source, origin(settings.hf_endpoint), settings.allow_private_urls))
    try:
        yield
    finally:
        _policy.reset(reset)


def _check_request(request: httpx2.Request) -> None:
    """Put each request of the library, redirects included, to the rules that ours keep."""
    policy = _policy.get()
    if policy is None:
        return
    url = str(request.url)
    via_proxy = select_proxy(url, get_environ_proxies(url)) is not None
    here = check_url(url, allow_private=policy.allow_private, via_proxy=via_proxy)
    if here != policy.home:
        request.headers.pop("Authorization", None)


def _client() -> httpx2.Client:
    timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    return httpx2.Client(event_hooks={"request": [_check_request]}, follow_redirects=True, timeout=timeout)


# Read when a request is made: it would name this machine's libraries, and fetch a list to find out who is asking.
constants.HF_HUB_DISABLE_TELEMETRY = True
huggingface_hub.set_client_factory(_client)
