"""Stands in for Civitai: the parts of its API and its download links that say what a file is and who may have it.

What it speaks, learned from developer.civitai.com/site/reference (model-versions, models, authentication) and the
site's public source (download endpoint, file service):

- GET `/api/v1/model-versions/ID` and `/api/v1/models/ID`: JSON, 404 `{"error": …}` for what is not published.
- GET `/api/download/models/ID[?fileId=|type=&format=&size=&fp=]`: 307 to storage with a signed query, which sends the
  name in Content-Disposition; 401 `Unauthorized` (no log-in, or downloads disabled), 403 `Early Access`, 404, and 410
  for archived models, each as JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.weights.storage_standin import Answer, Standin, StorageStandin

GOOD = "cv_SECRET_good"


@dataclass
class File:
    """A file of a version."""

    id: int
    name: str
    body: bytes
    type: str = "Model"
    format: str = "SafeTensor"
    size: str = ""
    primary: bool = False
    hashed: bool = True


@dataclass
class Version:
    """A version of a model; `refuses` is a status with which its download answers whoever asks."""

    model_id: int
    files: list[File]
    login: bool = False
    refuses: int | None = None
    listed: bool = True
    more: dict[str, Any] = field(default_factory=dict)
    mode: str | None = None


class CivitaiStandin(Standin):
    """The site; `versions` by id, newest last."""

    def __init__(self, storage: StorageStandin) -> None:
        super().__init__()
        self.versions: dict[int, Version] = {}
        self.broken: list[Answer] = []
        self._storage = storage

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        if self.broken:
            return self.broken.pop(0)
        parts = urlsplit(target)
        found = re.fullmatch(r"/api/(v1/model-versions|v1/models|download/models)/(\d+)", parts.path)
        if not found:
            return self._json(404, {"error": "Not found"})
        what, number = found[1], int(found[2])
        if what == "v1/models":
            versions = [i for i, version in self.versions.items() if version.model_id == number]
            if not versions:
                return self._json(404, {"error": f"No model with id {number}"})
            newest_first = [{"id": i, "name": f"v{i}", "files": []} for i in reversed(versions)]
            return self._json(200, {"id": number, "modelVersions": newest_first})
        version = self.versions.get(number)
        if what == "v1/model-versions":
            listed = version is not None and version.listed
            return self._json(200, self._version(number)) if listed else self._json(404, {"error": "Model not found"})
        if version is None:
            return self._json(404, {"error": "File not found"})
        return self._download(version, parse_qs(parts.query), headers.get("Authorization"))

    def _version(self, number: int) -> dict[str, Any]:
        version = self.versions[number]
        files = [
            {
                "id": file.id,
                "name": file.name,
                "type": file.type,
                "sizeKB": round(len(file.body) / 1024, 2),
                "metadata": {"format": file.format, "size": file.size or None, "fp": None},
                "hashes": {"SHA256": hashlib.sha256(file.body).hexdigest().upper()} if file.hashed else {},
                "downloadUrl": f"https://civitai.com/api/download/models/{number}?fileId={file.id}",
                **({"primary": True} if file.primary else {}),
            }
            for file in version.files
        ]
        model = {"name": "a model", "type": "LORA", **({"mode": version.mode} if version.mode else {})}
        usual = {"id": number, "availability": "Public", "usageControl": "Download", "earlyAccessEndsAt": None}
        return {**usual, "model": model, "files": [] if version.mode else files, **version.more}

    def _download(self, version: Version, query: Mapping[str, list[str]], authorization: str | None) -> Answer:
        if version.refuses is not None:
            return self._json(version.refuses, {"error": "Early Access"})
        if authorization not in (None, f"Bearer {GOOD}") or (version.login and authorization is None):
            return self._json(401, {"error": "Unauthorized", "message": "requires you to be logged in"})
        wanted = query.get("fileId", [""])[0]
        file = next((f for f in version.files if str(f.id) == wanted or (not wanted and f.primary)), None)
        if file is None:
            return self._json(404, {"error": "File not found"})
        self._storage.headers["Content-Disposition"] = f'attachment; filename="{file.name}"'
        where = self._storage.put(f"/models/{file.id}", file.body) + "?X-Amz-Signature=QUERYSECRET"
        return Answer(307, {"Location": where})

    def _json(self, status: int, document: dict[str, Any]) -> Answer:
        return Answer(status, {"Content-Type": "application/json"}, json.dumps(document).encode())
