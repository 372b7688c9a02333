"""What a person's link means: which URL to fetch, what to call it, and which token goes to which host.

Pure: nothing is asked of any server here. A source of another kind gets its own function beside `_hugging_face`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from urllib.parse import SplitResult, unquote, urlsplit

from comfyui.errors import DownloadError, TrainingInputError
from comfyui.settings import Settings
from comfyui.url_policy import Origin, display_url, origin
from comfyui.weights.folders import safe_file_name

_HUGGING_FACE = "https://huggingface.co"
_HUGGING_FACE_ALIASES = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_CIVITAI = "https://civitai.com"
_CIVITAI_ALIASES = frozenset({"civitai.com", "www.civitai.com"})
_HF_RIGHT_FORM = "https://huggingface.co/OWNER/REPO/resolve/main/FILE.safetensors"
_CIVITAI_RIGHT_FORM = "https://civitai.com/api/download/models/VERSION_ID"
_HF_VERBS = frozenset({"resolve", "blob", "raw", "tree"})


class Kind(Enum):
    """Who serves a source; decides what its errors advise."""

    HUGGING_FACE = "Hugging Face"
    CIVITAI = "Civitai"
    OTHER = "another server"


@dataclass(frozen=True, repr=False)
class Tokens:
    """The person's tokens; None where none was given. Shown nowhere, not even in a repr.

    Raises TrainingInputError for one that cannot be a token.
    """

    huggingface: str | None = None
    civitai: str | None = None

    def __post_init__(self) -> None:
        for name, input_name in (("huggingface", "huggingface_read_token"), ("civitai", "civitai_api_token")):
            # Copied tokens come with line ends; anything else odd would end up quoted in some library's error.
            token = (getattr(self, name) or "").strip()
            if not re.fullmatch(r"[!-~]*", token):
                raise TrainingInputError(
                    f"{input_name} has a space, a line end or a letter in it that no token has; copy it again.",
                    input_name=input_name,
                )
            object.__setattr__(self, name, token or None)

    def __repr__(self) -> str:
        given = [name for name in ("huggingface", "civitai") if getattr(self, name)]
        return f"Tokens(given for: {', '.join(given) or 'none'})"


NO_TOKENS = Tokens()


@dataclass(frozen=True)
class Source:
    """One file somewhere.

    `url` is what is fetched and may hold a secret in its query; `display_url` is the same without, for people.
    `secret_headers` go to `home` alone. `name` is the file's safe name where the URL is sure of it. `notices` are
    sentences for the person about what was understood.
    """

    url: str = field(repr=False)
    display_url: str
    kind: Kind
    home: Origin
    secret_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    name: str | None = None
    notices: tuple[str, ...] = ()


def parse_list(text: str | None) -> list[str]:
    """The entries of a training input: one per line, blank lines and spaces around entries ignored."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def understand(entry: str, settings: Settings, tokens: Tokens, *, input_name: str | None = None) -> Source:
    """What the link `entry` means. Raises TrainingInputError, with `input_name`, when it cannot mean a file."""
    shown = display_url(entry)
    if re.search(r"[\s,;]https?:", entry):
        raise TrainingInputError(
            f"{shown!r:.300} looks like several URLs on one line; give one URL per line.", input_name=input_name
        )
    if " " in entry:
        raise TrainingInputError(
            f"{shown!r:.300} has a space in it; give one URL per line, and write a space inside one as %20.",
            input_name=input_name,
        )
    try:
        home = origin(entry)
        hugging_face, civitai = origin(settings.hf_endpoint), origin(settings.civitai_endpoint)
    except DownloadError as e:
        raise TrainingInputError(str(e), input_name=input_name) from e
    notices: list[str] = []
    entry, home = _to_https(entry, home, notices)
    try:
        if home in (hugging_face, origin(_HUGGING_FACE)):
            prefix = _path_prefix(settings.hf_endpoint, hugging_face, home)
            return _hugging_face(entry, home, prefix, notices, tokens.huggingface)
        if home in (civitai, origin(_CIVITAI)):
            return _civitai(entry, home, notices, tokens.civitai)
    except _NoFileError as e:
        raise TrainingInputError(str(e), input_name=input_name) from None
    return plain(entry)


class _NoFileError(Exception):
    """A link on a known site that is not the link of a file; its text says what to give instead."""


def plain(url: str) -> Source:
    """A source of no special kind: fetched as it is; a user and password in it go to its own host alone.

    Raises DownloadError when it is not an http or https URL.
    """
    parts = urlsplit(url)
    user, has_user, host = parts.netloc.rpartition("@")
    secret = {"Authorization": "Basic " + base64.b64encode(unquote(user).encode()).decode()} if has_user else {}
    return Source(
        url=SplitResult(parts.scheme, host, parts.path, parts.query, "").geturl(),
        display_url=display_url(url),
        kind=Kind.OTHER,
        home=origin(url),
        secret_headers=MappingProxyType(secret),
    )


def _to_https(url: str, home: Origin, notices: list[str]) -> tuple[str, Origin]:
    """Turn other spellings of the two public sites into the one that tokens belong to."""
    known = ((_HUGGING_FACE_ALIASES, _HUGGING_FACE), (_CIVITAI_ALIASES, _CIVITAI))
    for aliases, site in known:
        if home.host in aliases and home != origin(site):
            parts, right = urlsplit(url), urlsplit(site)
            url = SplitResult(right.scheme, right.netloc, parts.path, parts.query, parts.fragment).geturl()
            notices.append(f"Fetching {display_url(url)} (https, the site's own name).")
            return url, origin(site)
    return url, home


def _path_prefix(endpoint: str, endpoint_origin: Origin, home: Origin) -> str:
    # A mirror may live below a path, as in https://mirror.example/hf.
    return urlsplit(endpoint).path.rstrip("/") if home == endpoint_origin else ""


def _hugging_face(url: str, home: Origin, prefix: str, notices: list[str], token: str | None) -> Source:
    parts = urlsplit(url)
    pieces = parts.path.removeprefix(prefix).strip("/").split("/")
    kind_of_repo = 1 if pieces[0] in ("datasets", "spaces") else 0
    # owner/repo/verb/revision/file; a few old repos have no owner.
    verb_at = next((i for i in (kind_of_repo + 2, kind_of_repo + 1) if _at(pieces, i) in _HF_VERBS), None)
    name = safe_file_name(unquote(pieces[-1]))
    if verb_at is None or pieces[verb_at] == "tree" or len(pieces) < verb_at + 3 or not name:
        what = "a folder" if _at(pieces, verb_at) == "tree" else "no file"
        raise _NoFileError(
            f"{display_url(url)} names {what} on Hugging Face. Give the link of one file, as in {_HF_RIGHT_FORM}."
        )
    if pieces[verb_at] != "resolve":
        before = pieces[verb_at]
        pieces[verb_at] = "resolve"
        changed = SplitResult(parts.scheme, parts.netloc, f"{prefix}/{'/'.join(pieces)}", parts.query, "").geturl()
        what = "is a web page about the file" if before == "blob" else "may give a pointer instead of the file"
        notices.append(f"{display_url(url)} {what}; fetching {display_url(changed)} instead.")
        url = changed
    base = plain(url)
    return Source(base.url, base.display_url, Kind.HUGGING_FACE, home, _bearer(token), name, tuple(notices))


def _civitai(url: str, home: Origin, notices: list[str], token: str | None) -> Source:
    parts = urlsplit(url)
    if re.match(r"/models/\d+", parts.path):
        version = re.search(r"(?:^|&)modelVersionId=(\d+)", parts.query)
        right = _CIVITAI_RIGHT_FORM.replace("VERSION_ID", version[1]) if version else _CIVITAI_RIGHT_FORM
        raise _NoFileError(
            f"{display_url(url)} is a web page on Civitai. Give the link of its Download button: {right}"
        )
    base = plain(url)
    return Source(base.url, base.display_url, Kind.CIVITAI, home, _bearer(token), None, tuple(notices))


def _bearer(token: str | None) -> Mapping[str, str]:
    return MappingProxyType({"Authorization": f"Bearer {token}"} if token else {})


def _at(pieces: list[str], index: int | None) -> str | None:
    return pieces[index] if index is not None and index < len(pieces) else None
