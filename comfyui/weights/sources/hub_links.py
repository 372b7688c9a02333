"""Links of Hugging Face: which file of which repo they name, and the link that gives it. Pure.

Forms: the hub's pages (`/owner/repo/{resolve,blob,raw,tree}/revision/path`, below `/datasets/` or `/spaces/` for these)
and `hf://[datasets/|spaces/]owner/repo[@revision][/path]`
(huggingface.co/docs/huggingface_hub/guides/hf_file_system).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote, urlsplit

from comfyui.url_policy import display_url
from comfyui.weights.remote import HubFile

RIGHT_FORM = "https://huggingface.co/OWNER/REPO/resolve/main/FILE.safetensors"

_TYPES = {"datasets": "dataset", "spaces": "space"}
_VERBS = frozenset({"resolve", "blob", "raw", "tree"})
# The hub's own pages have two parts too. An owner has no dot, or `example.com/a` would be a repo.
_NO_OWNERS = frozenset(
    {"api", "blog", "chat", "collections", "docs", "join", "learn", "login", "models", "new", "organizations", "papers"}
    | {"posts", "pricing", "search", "settings", "tasks"}
)
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,94}[A-Za-z0-9_])?")
_REPO = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_FILE_NAME = re.compile(r"\.(safetensors|sft|gguf|ckpt|pt2?|pth|bin|pkl|tar|zip)$", re.IGNORECASE)


class NoFileError(Exception):
    """A link on a known site that cannot be the link of a file; its text says what to give instead."""


def is_repo_name(text: str) -> bool:
    """Whether `text` is `owner/repo` (with `@revision` or without), and not the name of a file in a folder."""
    owner, _, repo = text.partition("@")[0].partition("/")
    return _is_repo(owner, repo) and not _FILE_NAME.search(repo)


def parse_hf_path(text: str) -> HubFile:
    """What `owner/repo` or the part behind `hf://` names. Raises NoFileError."""
    pieces = text.strip("/").split("/")
    repo_type = _TYPES.get(pieces[0], "model")
    if repo_type != "model":
        pieces = pieces[1:]
    owner, (repo, at, revision) = pieces[0], (pieces[1] if len(pieces) > 1 else "").partition("@")
    rest = pieces[2:]
    if at and revision == "refs" and len(rest) >= 2:
        revision, rest = "/".join([revision, *rest[:2]]), rest[2:]
    if not _is_repo(owner, repo) or (at and not revision):
        raise NoFileError(f"hf://{text[:300]} does not name a file. Write hf://OWNER/REPO/FILE.safetensors.")
    path = unquote("/".join(rest))
    _check_path(path, f"hf://{text[:300]}")
    return HubFile(repo_type, f"{owner}/{repo}", unquote(revision) or "main", path or None)


def parse_hub_url(url: str, prefix: str) -> HubFile:
    """What a link on the hub names; `prefix` is the path that a mirror lives below. Raises NoFileError."""
    shown = display_url(url)
    pieces = urlsplit(url).path.removeprefix(prefix).strip("/").split("/")
    repo_type = _TYPES.get(pieces[0], "model")
    if repo_type != "model":
        pieces = pieces[1:]
    # owner/repo/verb/revision/file; a few old repos have no owner.
    verb_at = next((at for at in (2, 1) if len(pieces) > at and pieces[at] in _VERBS), None)
    if verb_at is None and len(pieces) == 2 and _is_repo(*pieces):
        return HubFile(repo_type, "/".join(pieces), "main", None)
    if verb_at is None or len(pieces) < verb_at + 2:
        raise NoFileError(f"{shown} names no file on Hugging Face. Give the link of one file, as in {RIGHT_FORM}.")
    verb, rest = pieces[verb_at], pieces[verb_at + 1 :]
    refs = 3 if rest[0] == "refs" and len(rest) >= 3 else 1
    repo_id, revision, path = "/".join(pieces[:verb_at]), unquote("/".join(rest[:refs])), unquote("/".join(rest[refs:]))
    _check_path(path, shown)
    if not all(map(_REPO.fullmatch, pieces[:verb_at])) or not revision.strip():
        raise NoFileError(f"{shown} names no repo on Hugging Face. Give the link of one file, as in {RIGHT_FORM}.")
    if verb == "tree":
        return HubFile(repo_type, repo_id, revision, None, folder=path)
    if not path:
        raise NoFileError(f"{shown} names no file on Hugging Face. Give the link of one file, as in {RIGHT_FORM}.")
    return HubFile(repo_type, repo_id, revision, path)


def page_url(endpoint: str, file: HubFile) -> str:
    """The page of the repo, where its terms are accepted."""
    prefix = "" if file.repo_type == "model" else f"{file.repo_type}s/"
    return f"{endpoint}/{prefix}{file.repo_id}"


def file_url(endpoint: str, file: HubFile, path: str, revision: str | None = None) -> str:
    """The link that gives the bytes of `path`, at another revision than the file's own if one is given."""
    return f"{page_url(endpoint, file)}/resolve/{quote(revision or file.revision, safe='')}/{quote(path)}"


def verb_of(url: str) -> str | None:
    """Which of the hub's verbs a link has, None for one without."""
    return next((piece for piece in urlsplit(url).path.split("/")[2:5] if piece in _VERBS), None)


def _is_repo(owner: str, repo: str) -> bool:
    return bool(_OWNER.fullmatch(owner) and owner not in _NO_OWNERS and _REPO.fullmatch(repo)) and "--" not in owner


def _check_path(path: str, shown: str) -> None:
    parts: Sequence[str] = path.split("/") if path else []
    if any(part in ("", ".", "..") for part in parts) or not path.isprintable():
        raise NoFileError(f"{shown} has a path that no file of a repo has. Give the file's own link: {RIGHT_FORM}.")
