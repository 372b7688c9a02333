"""What Civitai says of a file before it is fetched: its name, its SHA-256, and why it may not be had.

Its API is asked for the version (`/api/v1/model-versions/ID`, and `/api/v1/models/ID` for a page without one), then the
download link for its first byte: only that shows the exact size, and whether the person may have the file. Fields and
statuses: developer.civitai.com/site/reference/model-versions and …/guide/authentication.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from comfyui.errors import DownloadError
from comfyui.weights.folders import safe_file_name
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.http.refusals import refusal
from comfyui.weights.remote import CivitaiFile, RemoteFile, Source
from comfyui.weights.sources.civitai_links import FILE_PARAMETERS, download_url, manifest_url, page_url
from comfyui.weights.sources.probe import probe

_MAX_ANSWER_BYTES = 32 * 1024 * 1024
_MODEL_TYPES = frozenset({"model", "pruned model"})
_NAMES_SHOWN = 12


@dataclass(frozen=True)
class ApiFile:
    """One of a version's files, as the API has it; `parameters` name it in a download link."""

    name: str
    primary: bool
    safe: bool
    traits: dict[str, str]
    parameters: tuple[tuple[str, str], ...]
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Version:
    """What the API says of a version; `mode` is "Archived" or "TakenDown" where it is."""

    files: tuple[ApiFile, ...]
    early_access: bool
    early_access_ends: str
    downloadable: bool
    mode: str


def resolve_civitai(source: Source, file: CivitaiFile, opener: HttpOpener) -> RemoteFile:
    """What is known of a file on Civitai. Raises DownloadError."""
    version_id, notices = _version_id(source, file, opener)
    answer = _ask(source, f"{file.site}/api/v1/model-versions/{version_id}", opener)
    if answer is None:
        return _unlisted(source, file, version_id, opener)
    version = parse_version(answer)
    _check_files(source, version)
    chosen, why = choose(source, version.files, file.wanted)
    url = download_url(file.site, version_id, chosen.parameters)
    named = replace(source, url=url, name=source.name or safe_file_name(chosen.name) or None)
    try:
        served = probe(named, url, opener)
    except DownloadError as e:
        raise explained(source, e, version) from e
    return RemoteFile(
        source=named,
        url=url,
        manifest_url=manifest_url(url),
        name=served.name,
        size=served.size if served.size is not None else chosen.size,
        sha256=chosen.sha256,
        validator=served.validator,
        ranges=served.ranges,
        notices=(*notices, *why),
    )


def parse_version(answer: dict[str, Any]) -> Version:
    """A version from the API's JSON; what is missing or odd is left out."""
    model = answer.get("model")
    mode = model.get("mode") if isinstance(model, dict) else None
    files = answer.get("files")
    ends = answer.get("earlyAccessEndsAt")
    return Version(
        files=tuple(_parse_file(file) for file in files if isinstance(file, dict)) if isinstance(files, list) else (),
        early_access=answer.get("availability") == "EarlyAccess" or isinstance(ends, str),
        early_access_ends=ends[:10] if isinstance(ends, str) and re.match(r"\d{4}-\d\d-\d\d", ends) else "",
        downloadable=answer.get("usageControl") in (None, "Download"),
        mode=mode if isinstance(mode, str) else "",
    )


def choose(
    source: Source, files: Sequence[ApiFile], wanted: Sequence[tuple[str, str]]
) -> tuple[ApiFile, tuple[str, ...]]:
    """The file that the link's parameters ask for, else the primary one, else a safetensors in place of a pickle.

    Raises DownloadError that lists the files when none is as asked. Also gives sentences about the choice.
    """
    fitting = [f for f in files if all(f.traits.get(key, "").lower() == value.lower() for key, value in wanted)]
    if not fitting:
        asked = ", ".join(f"{key}={value}"[:60] for key, value in wanted)
        have = "; ".join(_described(f) for f in files[:_NAMES_SHOWN])
        raise DownloadError(
            f"{source.display_url} has no file with {asked}. It has: {have}. Copy the link of one file's Download "
            "button.",
            url=source.display_url,
        )
    models = [f for f in fitting if f.traits["type"].lower() in _MODEL_TYPES] or fitting
    first = next((f for f in models if f.primary), models[0])
    if wanted or first.safe:
        return next((f for f in models if f.primary or f.safe), first) if wanted else first, ()
    instead = next((f for f in models if f.safe), None)
    if instead is None:
        return first, ()
    return instead, (f"{source.display_url}: taking {instead.name!r:.200} and not the pickle {first.name!r:.200}.",)


def explained(source: Source, error: DownloadError, version: Version | None) -> DownloadError:
    """The error for a file that the site lists and does not give, with what is known of its version."""
    status, given = error.status, bool(source.secret_headers)
    if status not in (200, 401, 403, 404, 410):
        return error
    if version is not None and not version.downloadable:
        why = "its creator allows its use on the site only, not its download. Use another model."
    elif status == 410 or (version is not None and version.mode):
        why = "the model was archived or taken down. Use another source."
    elif status == 404:
        why = "the file was deleted, or is not public. Look at the model's page for another version."
    elif version is not None and version.early_access and (given or status == 403):
        until = f" until {version.early_access_ends}" if version.early_access_ends else ""
        why = f"it is in early access{until}: buy access on its page with the token's account, or wait."
    elif given:
        why = (
            "the civitai_api_token is not valid, or its account may not have the file. Make a new one in your account "
            "settings on civitai.com."
        )
    else:
        why = "its creator requires a log-in. Give civitai_api_token (made in your account settings on civitai.com)."
    return DownloadError(f"{source.display_url} was not given: {why}", url=source.display_url, status=status)


def _version_id(source: Source, file: CivitaiFile, opener: HttpOpener) -> tuple[int, tuple[str, ...]]:
    if file.version_id is not None:
        return file.version_id, ()
    model = _ask(source, f"{file.site}/api/v1/models/{file.model_id}", opener)
    if model is None:
        raise _not_found(source)
    versions = [version for version in model.get("modelVersions") or () if isinstance(version, dict)]
    newest = next((version for version in versions if type(version.get("id")) is int), None)
    if newest is None:
        raise DownloadError(
            f"{source.display_url} has no published version. Use another model.", url=source.display_url
        )
    name = str(newest.get("name", ""))
    link = page_url(replace(file, version_id=newest["id"]))
    return newest["id"], (f"{source.display_url}: taking its newest version, {name!r:.100} ({link}).",)


def _ask(source: Source, url: str, opener: HttpOpener) -> dict[str, Any] | None:
    """The JSON at `url`, None for a 404."""
    with opener.open(source, url) as opened:
        if opened.response.status_code == 404:
            return None
        if opened.response.status_code != 200:
            status, wish = opened.response.status_code, opened.response.headers.get("Retry-After")
            raise explained(source, refusal(source, status, wish), None)
        data = opener.read(opened, _MAX_ANSWER_BYTES, source)
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise DownloadError(
            f"{source.display_url}: Civitai's API answered with something that is not its JSON. Try again later.",
            url=source.display_url,
        )
    return answer


def _unlisted(source: Source, file: CivitaiFile, version_id: int, opener: HttpOpener) -> RemoteFile:
    """A version that the API does not show (it hides some by site and region) but that may still be downloaded."""
    url = download_url(file.site, version_id, file.wanted)
    try:
        served = probe(replace(source, url=url), url, opener)
    except DownloadError as e:
        raise (_not_found(source) if e.status == 404 else explained(source, e, None)) from e
    notice = f"{source.display_url}: Civitai's API does not list it, so there is no published SHA-256 to check."
    return RemoteFile(
        source=replace(source, url=url),
        url=url,
        manifest_url=manifest_url(url),
        name=served.name,
        size=served.size,
        sha256=None,
        validator=served.validator,
        ranges=served.ranges,
        notices=(notice,),
    )


def _not_found(source: Source) -> DownloadError:
    return DownloadError(
        f"{source.display_url} was not found: it was deleted, is not public, or is shown only on Civitai's other site "
        "(civitai.com, civitai.red). Open its page in a browser.",
        url=source.display_url,
        status=404,
    )


def _check_files(source: Source, version: Version) -> None:
    if not version.files:
        # The site leaves the files of an archived model out.
        why = "was archived or taken down" if version.mode else "has no public file"
        raise DownloadError(f"{source.display_url} {why}. Use another source.", url=source.display_url)


def _parse_file(file: dict[str, Any]) -> ApiFile:
    metadata = file.get("metadata") if isinstance(file.get("metadata"), dict) else {}
    hashes = file.get("hashes") if isinstance(file.get("hashes"), dict) else {}
    traits = {key: str((metadata or {}).get(key) or "") for key in ("format", "size", "fp", "quantType")}
    traits |= {"type": str(file.get("type") or ""), "fileId": str(file.get("id") or "")}
    name, primary, sha256 = str(file.get("name") or ""), file.get("primary") is True, (hashes or {}).get("SHA256")
    return ApiFile(
        name=name,
        primary=primary,
        safe=traits["format"] == "SafeTensor" or name.lower().endswith((".safetensors", ".sft", ".gguf")),
        traits=traits,
        parameters=_parameters(file.get("downloadUrl"), traits, primary=primary),
        size=_exact_size(file.get("sizeKB")),
        sha256=sha256.lower() if isinstance(sha256, str) and re.fullmatch(r"[0-9A-Fa-f]{64}", sha256) else None,
    )


def _parameters(link: Any, traits: dict[str, str], *, primary: bool) -> tuple[tuple[str, str], ...]:
    query = parse_qsl(urlsplit(link).query) if isinstance(link, str) else []
    found = tuple((name, value) for name, value in query if name in FILE_PARAMETERS)
    if found or primary:
        return found
    return tuple((name, traits[name]) for name in FILE_PARAMETERS if name != "fileId" and traits[name])


def _exact_size(kilobytes: Any) -> int | None:
    # Rounded in some answers: only a whole number of bytes can be the true one.
    if not isinstance(kilobytes, (int, float)) or not 0 < kilobytes < 2**50:
        return None
    size = kilobytes * 1024
    return int(size) if size == int(size) else None


def _described(file: ApiFile) -> str:
    traits = ", ".join(value for key, value in file.traits.items() if key != "fileId" and value)
    return f"{file.name[:100]} ({traits})"
