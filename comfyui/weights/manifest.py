"""weights_manifest.json: the weights of a model, each with its size, SHA-256, source and place in a tar.

    {"version": 1, "weights": [{"path": "loras/a.safetensors", "url": "https://…", "size": 1, "sha256": "…",
                                "offset": 10752}]}

`path` is relative to ComfyUI's models folder. `url` may be null (the file came from no link). `offset`, only inside a
tar, is where the file's bytes begin in it. A tar with a LoRA that was trained has a second list, `training`, of the
same form: what the training left beside it, under training/, to be read and not to be restored; and `trained`, an
object that records what the LoRA was made from and with, in whatever words the training has for it. docs/weights.md
describes the format for users. Parsing is strict, since everything a restore trusts is in here: whatever is unknown,
missing or odd is an error that names its entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from comfyui.errors import ManifestError, WeightsError
from comfyui.weights.disk import write_whole
from comfyui.weights.folders import MAX_PART_BYTES, MODEL_FOLDERS, TRAINING_FOLDERS, check_member_path, path_key

MANIFEST_NAME = "weights_manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
VERSION = 1

_REQUIRED = ("path", "url", "size", "sha256")
_ALLOWED = (*_REQUIRED, "offset")
_CIVITAI_PATH = re.compile(r"/api/download/models/\d+$")
_CIVITAI_PARAMETER = re.compile(r"fileId=\d+|(type|format|size|fp|quantType)=[\w.%+-]{0,60}", re.ASCII)
# Room in a manifest for a number not known yet; 2^63 has 19 digits.
_MAX_NUMBER = 2**63


@dataclass(frozen=True)
class Weight:
    """One file: `size` and `offset` in bytes, `sha256` in lower-case hex.

    `url` has no user, fragment or query, but for the parameters of a Civitai download link that choose a file.
    """

    path: str
    url: str | None
    size: int
    sha256: str
    offset: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The weights of a model, in order; see the module for the format. Made by `parse` or checked by `dump`."""

    weights: tuple[Weight, ...]
    version: int = VERSION
    training: tuple[Weight, ...] = ()
    trained: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, data: str | bytes) -> Manifest:
        """Read a manifest; spaces and newlines around it are ignored. Raises ManifestError."""
        try:
            document = json.loads(data, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as e:
            raise ManifestError(f"{MANIFEST_NAME} is not JSON ({e}); bake the weights again.") from e
        if not isinstance(document, dict) or document.get("version") != VERSION:
            seen = document.get("version") if isinstance(document, dict) else type(document).__name__
            raise ManifestError(
                f"{MANIFEST_NAME} must be a JSON object with version {VERSION}; seen {seen!r:.100}. "
                "It was made by another program, or by a newer version of this one."
            )
        _check_keys(document, ("version", "weights"), ("version", "weights", "training", "trained"), None)
        lists = {"weights": document["weights"], "training": document.get("training", [])}
        for name, entries in lists.items():
            if not isinstance(entries, list):
                raise ManifestError(f"In {MANIFEST_NAME}, {name} must be a list.")
        trained = document.get("trained")
        if "trained" in document and not isinstance(trained, dict):
            raise ManifestError(f"In {MANIFEST_NAME}, trained must be a JSON object.")
        manifest = cls(
            _parse_weights(lists["weights"], MODEL_FOLDERS),
            training=_parse_weights(lists["training"], TRAINING_FOLDERS),
            trained=trained,
        )
        manifest._check_unique()
        return manifest

    def dump(self) -> bytes:
        """The manifest as JSON for people and programs, the same bytes for the same weights. Raises ManifestError."""
        for entries, folders in ((self.weights, MODEL_FOLDERS), (self.training, TRAINING_FOLDERS)):
            for index, weight in enumerate(entries):
                _check_weight(weight, weight.path or f"entry {index}", folders)
        self._check_unique()
        document: dict[str, Any] = {"version": self.version, "weights": [_as_json(weight) for weight in self.weights]}
        if self.training:
            document["training"] = [_as_json(weight) for weight in self.training]
        if self.trained is not None:
            document["trained"] = self.trained
        return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest file. Raises ManifestError, and OSError when there is none."""
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{MANIFEST_NAME} is {size} bytes long; {MAX_MANIFEST_BYTES} is the limit.")
        return cls.parse(path.read_bytes())

    def save(self, path: Path) -> None:
        """Write a manifest file: readers see the old one or the new one, never half of one."""
        write_whole(path, self.dump())

    def _check_unique(self) -> None:
        taken: dict[str, str] = {}
        for weight in (*self.weights, *self.training):
            key = path_key(weight.path)
            if key in taken:
                raise ManifestError(
                    f"{MANIFEST_NAME} has {weight.path!r} and {taken[key]!r}, which would be one file.",
                    entry=weight.path,
                )
            taken[key] = weight.path
        for key, path in taken.items():
            above = next((taken[folder] for folder in _folders_above(key) if folder in taken), None)
            if above is not None:
                raise ManifestError(
                    f"{MANIFEST_NAME} has {above!r}, a file, and {path!r}, which lies in it.", entry=path
                )


def room_for(members: Iterable[tuple[str, str | None]]) -> int:
    """The most bytes a manifest can take for these (folder, url) pairs, whatever the files' names, sizes and offsets.

    It depends on the folders and URLs alone, so the same request always reserves the same room.
    """
    # One-byte characters: the longest JSON of a name is as long as the longest name, since neither quotes nor
    # backslashes nor control characters may be in a path.
    name = "x" * MAX_PART_BYTES
    entries = [_as_json(Weight(f"{folder}/{name}", url, _MAX_NUMBER, "0" * 64, _MAX_NUMBER)) for folder, url in members]
    return len((json.dumps({"version": VERSION, "weights": entries}, ensure_ascii=False, indent=1) + "\n").encode())


def _as_json(weight: Weight) -> dict[str, Any]:
    entry = {key: getattr(weight, key) for key in _REQUIRED}
    return entry if weight.offset is None else {**entry, "offset": weight.offset}


def _parse_weights(entries: Sequence[Any], folders: Collection[str]) -> tuple[Weight, ...]:
    return tuple(_parse_weight(index, entry, folders) for index, entry in enumerate(entries))


def _parse_weight(index: int, entry: Any, folders: Collection[str]) -> Weight:
    name = f"entry {index}"
    if not isinstance(entry, dict):
        raise ManifestError(f"In {MANIFEST_NAME}, {name} must be a JSON object.", entry=name)
    if isinstance(entry.get("path"), str):
        name = entry["path"]
    _check_keys(entry, _REQUIRED, _ALLOWED, name)
    if "offset" in entry and entry["offset"] is None:
        raise ManifestError(f"In {MANIFEST_NAME}, {name!r:.300} has no number as its offset.", entry=name)
    weight = Weight(**entry)
    _check_weight(weight, name, folders)
    return weight


def _check_keys(found: dict[str, Any], required: tuple[str, ...], allowed: tuple[str, ...], entry: str | None) -> None:
    where = f"{MANIFEST_NAME}{f', entry {entry!r:.300},' if entry else ''}"
    for key in found:
        if key not in allowed:
            known = ", ".join(allowed)
            raise ManifestError(f"{where} has the unknown key {key!r:.100}; known are {known}.", entry=entry)
    for key in required:
        if key not in found:
            raise ManifestError(f"{where} lacks the key {key!r}.", entry=entry)


def _check_weight(weight: Weight, name: str, folders: Collection[str]) -> None:
    fault = None
    if not isinstance(weight.path, str):
        fault = "its path is not text"
    elif not (weight.url is None or isinstance(weight.url, str)):
        fault = "its url is neither text nor null"
    elif weight.url is not None:
        fault = _url_fault(weight.url)
    if fault is None and not _is_count(weight.size):
        fault = f"its size must be a number of bytes, not {weight.size!r:.100}"
    if fault is None and not (weight.offset is None or _is_count(weight.offset)):
        fault = f"its offset must be a number of bytes, not {weight.offset!r:.100}"
    if fault is None and not (isinstance(weight.sha256, str) and re.fullmatch(r"[0-9a-f]{64}", weight.sha256)):
        fault = f"its sha256 must be 64 lower-case hex digits, not {weight.sha256!r:.100}"
    if fault is not None:
        raise ManifestError(f"In {MANIFEST_NAME}, {name!r:.300} cannot be used: {fault}.", entry=name)
    try:
        check_member_path(weight.path, folders)
    except WeightsError as e:
        raise ManifestError(f"In {MANIFEST_NAME}, {name!r:.300} cannot be used. {e}", entry=name) from e


def _folders_above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _url_fault(url: str) -> str | None:
    # The URL itself stays out of the message: what makes it unfit may be a token.
    try:
        parts = urlsplit(url)
        has_port = parts.port is not None or parts.hostname is not None
    except ValueError:
        return "its url cannot be read"
    if " " in url or not url.isprintable():
        return "its url has a space or an invisible character"
    if parts.scheme not in ("http", "https") or not has_port:
        return "its url is not an http or https URL"
    if "@" in parts.netloc or "#" in url or ("?" in url and not _names_a_file(parts.path, parts.query)):
        return "its url has a user name, a query or a fragment, which may hold secrets and must not be written down"
    return None


def _names_a_file(path: str, query: str) -> bool:
    # One version on Civitai has several files, which only these parameters tell apart.
    return bool(_CIVITAI_PATH.search(path)) and all(_CIVITAI_PARAMETER.fullmatch(part) for part in query.split("&"))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result
