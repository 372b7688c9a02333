"""Stands in for the Hugging Face Hub as huggingface_hub 2.4 asks it, and for its file links.

What it speaks, learned from huggingface_hub's source (file_download.py, utils/_http.py) and the hub's documentation:

- HEAD and GET `/[datasets/]owner/repo/resolve/REVISION/PATH`: `X-Repo-Commit` always; a file in Git LFS or Xet is a 302
  to the CDN (another origin) with `X-Linked-Size` and `X-Linked-ETag` (its SHA-256, quoted); a small file comes itself
  with its Git blob id as ETag.
- GET `/api/models/owner/repo/revision/REVISION` (and `/api/datasets/…`): `{"id", "sha", "siblings": [{"rfilename"}]}`.
- A renamed repo: 307 to the new name, relative.
- Refusals: 401 `RepoNotFound` for a missing repo or a private one without a token, 404 for the same with a token; 401
  (no token) or 403 (token) `GatedRepo` for the files of a gated repo, whose listing is public; 404 `EntryNotFound` and
  `RevisionNotFound`; 401 with `X-Error-Message: Invalid credentials in Authorization header` for a wrong token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from tests.weights.storage_standin import Answer, Standin, StorageStandin

GOOD = "hf_SECRET_good"
NO_ACCESS = "hf_SECRET_no_access"
COMMIT = "c" * 40


@dataclass
class Repo:
    """A repo at one commit; names in `small` are not in LFS."""

    files: dict[str, bytes] = field(default_factory=dict)
    small: frozenset[str] = frozenset()
    private: bool = False
    gated: bool = False
    revisions: tuple[str, ...] = ("main", COMMIT)


class HuggingFaceStandin(Standin):
    """The hub, whose big files lie on `cdn`; `repos` by "owner/repo" or "datasets/owner/repo"."""

    def __init__(self, cdn: StorageStandin) -> None:
        super().__init__()
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.says_commit = True
        self.broken: list[Answer] = []
        self._cdn = cdn

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        if self.broken:
            return self.broken.pop(0)
        path = target.partition("?")[0].removeprefix("/")
        authorization = headers.get("Authorization", headers.get("authorization", ""))
        token = authorization.removeprefix("Bearer ") or None
        if token not in (None, GOOD, NO_ACCESS):
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        is_api = path.startswith("api/")
        path = path.removeprefix("api/").removeprefix("models/")
        for marker in ("/resolve/", "/revision/"):
            if marker in path:
                repo_id, _, rest = path.partition(marker)
                break
        else:
            repo_id, rest = path, "main"
        if repo_id in self.renamed:
            return Answer(307, {"Location": target.replace(repo_id, self.renamed[repo_id])})
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and token != GOOD):
            return self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
        revision, _, name = rest.partition("/")
        if unquote(revision) not in repo.revisions:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if is_api:
            siblings = [{"rfilename": file} for file in repo.files]
            document = {"id": repo_id, "sha": COMMIT, "gated": repo.gated, "siblings": siblings}
            return Answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())
        if repo.gated and token != GOOD:
            return self._refuse(401 if token is None else 403, "GatedRepo", "Access to model is restricted")
        if unquote(name) not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._file(repo, unquote(name))

    def _file(self, repo: Repo, name: str) -> Answer:
        body = repo.files[name]
        own = {"X-Repo-Commit": COMMIT} if self.says_commit else {}
        if name in repo.small:
            blob = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
            return Answer(200, {**own, "ETag": f'"{blob}"'}, body)
        digest = hashlib.sha256(body).hexdigest()
        where = self._cdn.put(f"/repos/{digest}", body) + "?Signature=QUERYSECRET"
        linked = {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{digest}"'}
        return Answer(302, {**own, **linked, "Location": where}, b"Found. Redirecting")

    def _refuse(self, status: int, code: str | None, message: str) -> Answer:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        return Answer(status, headers, json.dumps({"error": message}).encode())
