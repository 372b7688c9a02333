"""Links of Civitai: which version of which model they name, and the link that gives its file. Pure.

Forms: the model's page (`/models/ID/name`, with or without `modelVersionId`), the version's (`/model-versions/ID`), and
the Download button's link (`/api/download/models/VERSION_ID`, with parameters where a version has several files), as in
developer.civitai.com/site/reference. civitai.red and civitai.green are the same site's other names, with the same ids
and accounts; which models they show differs, so a link stays on the one it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode, urlsplit

from comfyui.url_policy import display_url
from comfyui.weights.remote import CivitaiFile, is_token
from comfyui.weights.sources.hub_links import NoFileError

RIGHT_FORM = "https://civitai.com/api/download/models/VERSION_ID"
FILE_PARAMETERS = ("fileId", "type", "format", "size", "fp", "quantType")
"""Parameters of a download link that choose one of a version's files; no others are sent, nor written down."""

_DOWNLOAD = re.compile(r"/api/download/models/(\d{1,18})/?")
_VERSION = re.compile(r"/(?:api/v1/)?model-versions/(\d{1,18})(?:/.*)?")
_MODEL = re.compile(r"/(?:api/v1/)?models/(\d{1,18})(?:/.*)?")


def parse_civitai_url(url: str, site: str, prefix: str) -> CivitaiFile:
    """What a link on Civitai names; `site` is the base URL to ask, `prefix` the path a mirror lives below.

    Raises NoFileError.
    """
    parts = urlsplit(url)
    path, query = parts.path.removeprefix(prefix), parse_qsl(parts.query)
    if found := _DOWNLOAD.fullmatch(path):
        wanted = tuple((name, value) for name, value in query if name in FILE_PARAMETERS and value)
        return CivitaiFile(site, int(found[1]), wanted=wanted)
    if found := _VERSION.fullmatch(path):
        return CivitaiFile(site, int(found[1]))
    if found := _MODEL.fullmatch(path):
        version = next((value for name, value in query if name == "modelVersionId"), "")
        return CivitaiFile(site, int(version) if re.fullmatch(r"\d{1,18}", version) else None, model_id=int(found[1]))
    raise NoFileError(
        f"{display_url(url)} is not the page of a model on Civitai. Give the model's page, or its Download button's "
        f"link: {RIGHT_FORM}."
    )


def token_in(url: str) -> str | None:
    """The token that a person wrote into a link's query, None if there is none that can be one."""
    token = next((value for name, value in parse_qsl(urlsplit(url).query) if name == "token"), "").strip()
    return token if token and is_token(token) else None


def download_url(site: str, version_id: int, parameters: Iterable[tuple[str, str]] = ()) -> str:
    """The link that gives a file of a version, with those of `parameters` that choose one."""
    query = urlencode([(name, value) for name, value in parameters if _is_file_parameter(name, value)])
    return f"{site}/api/download/models/{version_id}{'?' + query if query else ''}"


def manifest_url(url: str) -> str:
    """A link made by `download_url` as it may be written down: its parameters hold no secret."""
    query = urlsplit(url).query
    return display_url(url) + ("?" + query if query else "")


def page_url(file: CivitaiFile) -> str:
    """The page of a version or model, for people."""
    kind = "model-versions" if file.version_id is not None else "models"
    return f"{file.site}/{kind}/{file.version_id or file.model_id}"


def _is_file_parameter(name: str, value: str) -> bool:
    # No longer than a manifest takes once it is encoded (manifest.py).
    return (
        name in FILE_PARAMETERS
        and re.fullmatch(r"\d{1,18}" if name == "fileId" else r"[\w.+ -]{1,20}", value, re.ASCII) is not None
    )
