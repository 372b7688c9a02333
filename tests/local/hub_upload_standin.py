"""Stands in for the Hugging Face Hub as `HfApi` of huggingface_hub 2.4 uploads to it, over Git LFS.

What it speaks, learned from that library's source (hf_api.py, _commit_api.py, lfs.py) and from
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md:

- GET /api/whoami-v2; POST /api/repos/create (409 for one that is there); GET /api/models/O/R[/revision/REV];
  POST /api/models/O/R/paths-info/REV; POST …/preupload/REV; POST /O/R.git/info/lfs/objects/batch; PUT of the object on
  storage of another origin, which takes no token; POST of its verification; POST /api/models/O/R/commit/REV (ndjson).
- 401 for a wrong token, 403 for one that may not write, 404 for a repo that is not there.

The Xet protocol, which the real hub prefers, is not spoken here: the tests turn it off (HF_HUB_DISABLE_XET=1).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from tests.local.api_server import ApiServer, Request
from tests.local.replicate_standin import reply
from tests.weights.storage_standin import Answer

WRITER = "hf_SECRET_writer"
READER = "hf_SECRET_reader"


@dataclass
class HubRepo:
    """A repo: its commits, newest last, each with the SHA-256 of every file by path."""

    visibility: str
    commits: list[tuple[str, dict[str, str]]] = field(default_factory=lambda: [("0" * 40, {})])


class ObjectStorage(ApiServer):
    """Takes objects, by PUT, without a token; `objects` by SHA-256."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.mangle = False

    def answer(self, request: Request) -> Answer:
        if "Authorization" in request.headers:
            return Answer(400, body=b"<Error><Code>InvalidArgument</Code></Error>")
        body = request.body[:-1] if self.mangle else request.body
        self.objects[request.path.rpartition("/")[2]] = body
        return Answer(200, {"ETag": '"1"'})


class HubUploadStandin(ApiServer):
    """The hub, with `storage` for its large files."""

    def __init__(self, storage: ObjectStorage) -> None:
        super().__init__()
        self.repos: dict[str, HubRepo] = {}
        self._storage = storage

    def answer(self, request: Request) -> Answer:
        authorization = request.headers.get("Authorization", request.headers.get("authorization", ""))
        token = authorization.removeprefix("Bearer ")
        if token not in (WRITER, READER):
            return refusal(401, "Invalid credentials in Authorization header")
        if request.path == "/api/whoami-v2":
            return reply({"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": {"type": "access_token"}})
        if token != WRITER and request.method != "GET" and "paths-info" not in request.path:
            return refusal(403, "You don't have the rights to do that")
        if request.path == "/api/repos/create":
            return self._create(json.loads(request.body))
        if request.path.endswith("/verify"):
            return self._verify(json.loads(request.body))
        if ".git/info/lfs/" in request.path:
            return self._batch(request.path.partition(".git/")[0].strip("/"), json.loads(request.body))
        owner, name, *rest = request.path.removeprefix("/api/models/").split("/")
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None:
            return refusal(404, "Repository not found", "RepoNotFound")
        match rest:
            case [] | ["revision", _]:
                private = repo.visibility == "private"
                return reply({"id": f"{owner}/{name}", "sha": repo.commits[-1][0], "private": private, "siblings": []})
            case ["paths-info", revision]:
                return self._paths(repo, revision, parse_qs(request.body.decode())["paths"])
            case ["preupload", _]:
                files = json.loads(request.body)["files"]
                modes = [
                    {"path": one["path"], "uploadMode": "lfs", "shouldIgnore": False, "oid": None} for one in files
                ]
                return reply({"files": modes})
            case ["commit", _]:
                return self._commit(f"{owner}/{name}", repo, request.body)
        return refusal(404, f"no {request.path}")

    def _create(self, given: dict[str, Any]) -> Answer:
        name = f"{given.get('organization') or 'me'}/{given['name']}"
        if name in self.repos:
            return reply({"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409)
        self.repos[name] = HubRepo(given.get("visibility", "public"))
        return reply({"url": f"{self.url}/{name}"})

    def _batch(self, repo: str, given: dict[str, Any]) -> Answer:
        assert given["operation"] == "upload"
        objects = []
        for one in given["objects"]:
            there = one["oid"] in self._storage.objects
            upload = {"href": f"{self._storage.url}/repos/{one['oid']}", "header": {}}
            verify = {"href": f"{self.url}/{repo}.git/info/lfs/verify", "header": {}}
            objects.append({**one, **({} if there else {"actions": {"upload": upload, "verify": verify}})})
        return Answer(
            200,
            {"Content-Type": "application/vnd.git-lfs+json"},
            json.dumps({"transfer": "basic", "objects": objects}).encode(),
        )

    def _verify(self, given: dict[str, Any]) -> Answer:
        body = self._storage.objects.get(given["oid"])
        whole = body is not None and len(body) == given["size"] and hashlib.sha256(body).hexdigest() == given["oid"]
        return reply({}) if whole else refusal(422, "The object is not what it was said to be")

    def _commit(self, name: str, repo: HubRepo, body: bytes) -> Answer:
        files = dict(repo.commits[-1][1])
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "lfsFile":
                files[operation["value"]["path"]] = operation["value"]["oid"]
        oid = hashlib.sha1(f"{len(repo.commits)}{sorted(files.items())}".encode(), usedforsecurity=False).hexdigest()
        repo.commits.append((oid, files))
        url = f"{self.url}/{name}/commit/{oid}"
        return reply({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _paths(self, repo: HubRepo, revision: str, wanted: list[str]) -> Answer:
        files = next((files for oid, files in reversed(repo.commits) if revision in (oid, "main")), None)
        if files is None:
            return refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        found = []
        for path in wanted:
            if path in files:
                size = len(self._storage.objects[files[path]])
                lfs = {"oid": files[path], "size": size, "pointerSize": 134}
                found.append({"type": "file", "path": path, "size": size, "oid": "1" * 40, "lfs": lfs})
        return reply(found)


def refusal(status: int, message: str, code: str | None = None) -> Answer:
    headers = {"X-Error-Message": message, "Content-Type": "application/json"}
    headers |= {"X-Error-Code": code} if code else {}
    return Answer(status, headers, json.dumps({"error": message}).encode())
