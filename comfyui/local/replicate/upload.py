"""Weight files to a repo on Hugging Face: proven before they go, looked up after, each with the link of its commit.

A file is one commit, so an upload that was interrupted goes on with the first file that is not there yet. How bytes
travel (Xet, or Git LFS) is huggingface_hub's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from comfyui.errors import RequestError, WeightsError
from comfyui.local.replicate.failures import ServiceError
from comfyui.local.terminal import can_draw, printable_line
from comfyui.settings import Settings
from comfyui.weights.folders import check_member_path
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.listener import Listener, size_text
from comfyui.weights.sources.hub_links import is_repo_name

READ_BYTES = 4 << 20
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_AGAIN = "Run the same command again; files that are there already are not sent twice."


@dataclass(frozen=True)
class LocalWeight:
    """A file of this machine, and where it belongs: `folder` of ComfyUI's models folder, so of the repo too."""

    path: Path
    folder: str
    input_name: str

    @property
    def place(self) -> str:
        """Its path in the repo, and below the models folder."""
        return f"{self.folder}/{self.path.name}"


@dataclass(frozen=True)
class Uploaded:
    """A file that is in the repo: its link names the commit, so it gives these very bytes for ever."""

    place: str
    url: str
    digest: Digest


def prove(weight: LocalWeight, listener: Listener, *, allow_pickle: bool) -> Digest:
    """Read a file to its end: its size and SHA-256. Raises WeightsError for one that is cut, RequestError for none."""
    check_member_path(weight.place)
    try:
        with weight.path.open("rb") as file:
            size = weight.path.stat().st_size
            listener.begin("reading", [(weight.place, size)])
            verifier = Verifier(weight.place, allow_pickle=allow_pickle)
            while chunk := file.read(READ_BYTES):
                verifier.feed(chunk)
                listener.advance(weight.place, len(chunk))
    except OSError as error:
        raise RequestError(f"{weight.path} cannot be read: {error.strerror}.") from error
    try:
        digest = verifier.finish()
    except WeightsError as error:
        raise WeightsError(
            f"{weight.path} was not uploaded. {error}", path=error.path, expected=error.expected, seen=error.seen
        ) from error
    listener.proven(weight.place, digest.size, digest.sha256)
    listener.end()
    return digest


class Hub:
    """A repo on Hugging Face; "/name" is one of the token's owner. Every method raises ServiceError.

    Raises RequestError for a name that is no repo's.
    """

    def __init__(self, repo: str, token: str, settings: Settings, say: Callable[[str], None]) -> None:
        self.repo = repo
        self._endpoint = settings.hf_endpoint
        self._say = say
        self._token = token
        self._api = HfApi(endpoint=self._endpoint, token=token)
        if repo.startswith("/"):
            with self._explained("say whose the token is"):
                self.repo = self._api.whoami()["name"] + repo
        if not is_repo_name(self.repo) or "@" in repo:
            raise RequestError(f"--repo {repo!r} does not name a repo; write OWNER/REPO, as in me/models.")

    def make(self, *, private: bool) -> None:
        """Make the repo; one that is there stays as it is.

        Raises RequestError for one that is public though `private` is wanted.
        """
        with self._explained("make the repo"):
            self._api.create_repo(self.repo, private=private, exist_ok=True)
            public = self._api.repo_info(self.repo).private is False
        if private and public:
            raise RequestError(
                f"{self.repo} is there already and public, so everybody could read the files. Name another repo with "
                "--repo, or say that it is meant with --public (for ship, --public-repo)."
            )

    def put(self, weight: LocalWeight, digest: Digest) -> Uploaded:
        """Upload a file, unless the repo has it with these bytes; then ask the hub what it has there."""
        commit = self._commit_with(weight.place, digest)
        if commit is not None:
            self._say(f"{weight.place} is in {self.repo} already, with the same SHA-256")
            return self._uploaded(weight.place, commit, digest)
        self._say(f"uploading {weight.place}, {size_text(digest.size)}, to {self.repo}")
        with self._explained(f"take {weight.place}"):
            made = self._api.upload_file(
                path_or_fileobj=weight.path,
                path_in_repo=weight.place,
                repo_id=self.repo,
                commit_message=f"Upload {weight.place}",
            )
        if self._commit_with(weight.place, digest, made.oid) is None:
            raise ServiceError(
                f"Hugging Face does not have the bytes of {weight.path} at {weight.place} after the upload. Was the "
                "file changed meanwhile? Run the same command again.",
                service="Hugging Face",
            )
        return self._uploaded(weight.place, made.oid, digest)

    def _commit_with(self, place: str, digest: Digest, commit: str | None = None) -> str | None:
        """The commit (the newest if none is given) at which the repo has a file of this digest, None without one."""
        with self._explained(f"say what it has at {place}"):
            try:
                commit = commit or str(self._api.repo_info(self.repo).sha)
                found = self._api.get_paths_info(self.repo, [place], revision=commit)
            except errors.EntryNotFoundError:
                return None
        return commit if any(_is(file, place, digest) for file in found) else None

    def _uploaded(self, place: str, commit: str, digest: Digest) -> Uploaded:
        return Uploaded(place, f"{self._endpoint}/{self.repo}/resolve/{commit}/{quote(place)}", digest)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            # huggingface_hub's own errors are OSErrors; what happens in its threads it wraps into RuntimeErrors.
            refused = next((cause for cause in _causes(error) if isinstance(cause, errors.HfHubHTTPError)), None)
            if refused is not None:
                raise self._refused(what, refused) from error
            raise ServiceError(
                f"Hugging Face could not be asked to {what}: {type(error).__name__}. Check the network. {_AGAIN}",
                service="Hugging Face",
            ) from error

    def _refused(self, what: str, error: errors.HfHubHTTPError) -> ServiceError:
        status = error.response.status_code
        whole = str(error.server_message or "").replace(self._token, "…")
        said = printable_line(" ".join(whole.split()))[:500]
        way_out = _AGAIN
        if status in (401, 403):
            way_out = f"Use a token that may write to {self.repo}: {TOKENS_PAGE}, HF_TOKEN or --hf-token-file."
        elif status == 404:
            way_out = f"Check the name {self.repo}, and that the token may write there."
        return ServiceError(
            f"Hugging Face refused to {what} ({status}{f': {said}' if said else ''}). {way_out}",
            service="Hugging Face",
            status=status,
            detail=said,
        )


def check_places(weights: Sequence[LocalWeight]) -> None:
    """Raise RequestError when two files would be one in the repo."""
    places = [weight.place for weight in weights]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise RequestError(f"Two files would both be {twice}; give one of them another name.")


def upload_all(
    weights: Sequence[LocalWeight], hub: Hub, listener: Listener, *, private: bool, allow_pickle: bool
) -> list[Uploaded]:
    """Prove all files first, then upload them one by one. Raises as `prove` and `Hub` do."""
    check_places(weights)
    digests = [prove(weight, listener, allow_pickle=allow_pickle) for weight in weights]
    hub.make(private=private)
    return [hub.put(weight, digest) for weight, digest in zip(weights, digests, strict=True)]


def quiet_unless_drawable(stream: Any, *, as_json: bool) -> None:
    """Leave huggingface_hub's progress bars to terminals."""
    if as_json or not can_draw(stream):
        disable_progress_bars()


def _is(file: Any, place: str, digest: Digest) -> bool:
    if not isinstance(file, RepoFile) or file.path != place or file.size != digest.size:
        return False
    # A file that is small enough to be in Git itself has no SHA-256 there; weights are in Git LFS or Xet.
    return file.lfs is not None and file.lfs.sha256 == digest.sha256


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
