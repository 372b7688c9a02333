"""What a person's entry means: which file on which site, what to call it, and which token goes to which host.

Pure: nothing is asked of any server here. A site whose links have forms of their own has a module for them.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from urllib.parse import SplitResult, unquote, urlsplit

from comfyui.errors import DownloadError, TrainingInputError
from comfyui.settings import Settings
from comfyui.url_policy import Origin, display_url, origin
from comfyui.weights.folders import safe_file_name
from comfyui.weights.remote import CivitaiFile, HubFile, Kind, Source, Tokens, bearer
from comfyui.weights.sources import civitai_links, hub_links
from comfyui.weights.sources.hub_links import NoFileError

_HUGGING_FACE = "https://huggingface.co"
_HUGGING_FACE_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co"})
_CIVITAI = "https://civitai.com"
_CIVITAI_HOSTS = frozenset({"civitai.com", "civitai.red", "civitai.green"})
_REPLICATE_HOST = "replicate.delivery"


def understand(entry: str, settings: Settings, tokens: Tokens, *, input_name: str | None = None) -> Source:
    """What `entry` means: a URL, `hf://owner/repo/path` or `owner/repo`, with `#sha256=…&name=…` behind it or not.

    Raises TrainingInputError, with `input_name`, when it cannot mean a file.
    """
    try:
        return _understand(entry, settings, tokens, input_name)
    except (NoFileError, DownloadError) as e:
        raise TrainingInputError(str(e), input_name=input_name) from e


def plain(url: str) -> Source:
    """A source of no special kind: fetched as it is; a user and password in it go to its own host alone.

    Raises DownloadError when it is not an http or https URL.
    """
    home = origin(url)
    parts = urlsplit(url)
    user, has_user, host = parts.netloc.rpartition("@")
    secret = {"Authorization": "Basic " + base64.b64encode(unquote(user).encode()).decode()} if has_user else {}
    return Source(
        url=SplitResult(parts.scheme, host, parts.path, parts.query, "").geturl(),
        display_url=display_url(url),
        kind=Kind.OTHER,
        home=home,
        secret_headers=MappingProxyType(secret),
    )


@dataclass(frozen=True)
class _Given:
    """What a person wrote behind the `#`."""

    sha256: str | None = None
    name: str | None = None


def _understand(entry: str, settings: Settings, tokens: Tokens, input_name: str | None) -> Source:
    _check_one_entry(entry)
    entry, given = _split_fragment(entry)
    if entry.startswith("hf://") or hub_links.is_repo_name(entry):
        file = hub_links.parse_hf_path(entry.removeprefix("hf://"))
        return _with_given(_hub_source(file, settings, tokens.huggingface, ()), given)
    if re.fullmatch(r"[\w-]+(/[\w.-]+){2,}", entry):
        raise NoFileError(f"{entry[:300]} has no scheme. For a file on Hugging Face write hf://{entry[:300]}.")
    home = origin(entry)
    if home == origin(settings.hf_endpoint) or home.host in _HUGGING_FACE_HOSTS:
        return _with_given(_hugging_face(entry, home, settings, tokens.huggingface), given)
    site = _civitai_site(home, settings)
    if site is not None:
        return _with_given(_civitai(entry, home, site, tokens.civitai), given)
    source = plain(entry)
    from_replicate = home.host == _REPLICATE_HOST or home.host.endswith("." + _REPLICATE_HOST)
    tar = urlsplit(entry).path.lower().endswith(".tar") and (from_replicate or input_name == "loras")
    return _with_given(replace(source, kind=Kind.REPLICATE if from_replicate else Kind.OTHER, tar=tar), given)


def _check_one_entry(entry: str) -> None:
    shown = display_url(entry)
    if re.search(r"[\s,;](https?|hf):", entry):
        raise NoFileError(f"{shown!r:.300} looks like several URLs on one line; give one URL per line.")
    if re.search(r"\s", entry):
        raise NoFileError(f"{shown!r:.300} has a space in it; give one URL per line, and write a space in one as %20.")


def _split_fragment(entry: str) -> tuple[str, _Given]:
    entry, _, fragment = entry.partition("#")
    shown = display_url(entry)
    given: dict[str, str] = {}
    for part in fragment.split("&"):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        if not equals:
            continue
        if key not in ("sha256", "name") or key in given:
            # A mistyped sha256 that is not noticed would be one that is not enforced.
            raise NoFileError(f"{shown} has {key[:40]!r} behind its #; known there are sha256 and name, each once.")
        given[key] = unquote(value)
    sha256 = given.get("sha256", "").lower() if "sha256" in given else None
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise NoFileError(f"{shown} has a #sha256= of {len(sha256)} characters; a SHA-256 is 64 hex digits.")
    name = given.get("name")
    if name is not None and (not name or safe_file_name(name) != name):
        raise NoFileError(f"{shown} has #name={name!r:.300}, which is no file name; give one such as my.safetensors.")
    return entry, _Given(sha256, name)


def _with_given(source: Source, given: _Given) -> Source:
    return replace(source, name=given.name or source.name, sha256=given.sha256)


def _hugging_face(url: str, home: Origin, settings: Settings, token: str | None) -> Source:
    endpoint = settings.hf_endpoint
    file = hub_links.parse_hub_url(url, urlsplit(endpoint).path if home == origin(endpoint) else "")
    source = _hub_source(file, settings, token, ())
    verb, notices = hub_links.verb_of(url), []
    if verb in ("blob", "raw"):
        what = "is a web page about the file" if verb == "blob" else "may give a pointer instead of the file"
        notices.append(f"{display_url(url)} {what}; fetching {source.display_url} instead.")
    elif home != source.home:
        notices.append(f"{display_url(url)} is fetched as {source.display_url}.")
    return replace(source, notices=tuple(notices))


def _hub_source(file: HubFile, settings: Settings, token: str | None, notices: tuple[str, ...]) -> Source:
    endpoint = settings.hf_endpoint
    name = safe_file_name(file.path) or None if file.path is not None else None
    if file.path is not None and name is None:
        raise NoFileError(f"{file.path!r:.300} is no file name. Give the file's own link: {hub_links.RIGHT_FORM}.")
    url = hub_links.file_url(endpoint, file, file.path) if file.path else hub_links.page_url(endpoint, file)
    return Source(
        url, display_url(url), Kind.HUGGING_FACE, origin(endpoint), bearer(token), name, hub=file, notices=notices
    )


def _civitai_site(home: Origin, settings: Settings) -> str | None:
    """The base URL at which a link's file is asked for, None when it is not a link of Civitai."""
    if home == origin(settings.civitai_endpoint):
        return settings.civitai_endpoint
    host = home.host.removeprefix("www.")
    if host not in _CIVITAI_HOSTS:
        return None
    return f"https://{host}" if settings.civitai_endpoint == _CIVITAI else settings.civitai_endpoint


def _civitai(url: str, home: Origin, site: str, token: str | None) -> Source:
    file = civitai_links.parse_civitai_url(url, site, urlsplit(site).path if home == origin(site) else "")
    asked = _civitai_url(file)
    notices = [] if home == origin(site) else [f"{display_url(url)} is fetched as {display_url(asked)}."]
    in_query = civitai_links.token_in(url)
    if in_query is not None:
        notices.append(f"The token in {display_url(url)} is sent as a header instead; give it as civitai_api_token.")
    secret = bearer(token or in_query)
    return Source(asked, display_url(asked), Kind.CIVITAI, origin(site), secret, civitai=file, notices=tuple(notices))


def _civitai_url(file: CivitaiFile) -> str:
    if file.version_id is None:
        return civitai_links.page_url(file)
    return civitai_links.download_url(file.site, file.version_id, file.wanted)
