"""A file somewhere else: who serves it, with which token, what its server has told about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from comfyui.errors import TrainingInputError
from comfyui.url_policy import Origin


class Kind(Enum):
    """Who serves a source; decides how it is asked and what its errors advise."""

    HUGGING_FACE = "Hugging Face"
    CIVITAI = "Civitai"
    REPLICATE = "Replicate"
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
            if not is_token(token):
                raise TrainingInputError(
                    f"{input_name} has a space, a line end or a letter in it that no token has; copy it again.",
                    input_name=input_name,
                )
            object.__setattr__(self, name, token or None)

    def __repr__(self) -> str:
        given = [name for name in ("huggingface", "civitai") if getattr(self, name)]
        return f"Tokens(given for: {', '.join(given) or 'none'})"


def is_token(text: str) -> bool:
    """Whether `text` has only characters that may be in a token, and so in a header."""
    return re.fullmatch(r"[!-~]*", text) is not None


def bearer(token: str | None) -> Mapping[str, str]:
    """The headers that carry a token; none without one."""
    return MappingProxyType({"Authorization": f"Bearer {token}"} if token else {})


NO_TOKENS = Tokens()


@dataclass(frozen=True)
class HubFile:
    """A file on Hugging Face; `path` is None for the one weights file of the repo, or of `folder` in it.

    `repo_type` is "model", "dataset" or "space"; `revision` a branch, tag or commit.
    """

    repo_type: str
    repo_id: str
    revision: str
    path: str | None
    folder: str = ""


@dataclass(frozen=True)
class CivitaiFile:
    """A file on Civitai: of a version, or of the newest version of a model.

    `site` is the site's base URL; `wanted` are the parameters of a download link that choose one of a version's files.
    """

    site: str
    version_id: int | None
    model_id: int | None = None
    wanted: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """One file somewhere.

    `url` is what is fetched and may hold a secret in its query; `display_url` is the same without, for people.
    `secret_headers` go to `home` alone. `name` is the file's safe name where that is sure without asking anybody.
    `sha256` is the one the person gave (lower-case hex). `hub` and `civitai` say which file it is on these sites.
    `tar` says that the file is the LoRA inside a tar at `url`. `notices` are sentences for the person about what was
    understood.
    """

    url: str = field(repr=False)
    display_url: str
    kind: Kind
    home: Origin
    secret_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    name: str | None = None
    sha256: str | None = None
    hub: HubFile | None = None
    civitai: CivitaiFile | None = None
    tar: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar: its name there, its size in bytes, and where its bytes begin in the tar."""

    name: str
    size: int
    offset: int


@dataclass(frozen=True)
class RemoteFile:
    """What is known of a file before it is fetched.

    `url` is where its bytes are asked for, with `source.secret_headers` at `source.home`; it may hold secrets in its
    query. `manifest_url` names the same file for ever where its site can, and holds no secret. `name` is a safe file
    name. `size` is in bytes, `sha256` lower-case hex; each is None when nobody says. `validator` is for If-Range (RFC
    9110, 13.1.5): a strong ETag, else the Last-Modified date, else None. `ranges` says that the server answered a range
    request as it should. With `member`, `url` gives a tar, and the file is that part of it: `size` is the member's,
    `validator` and `ranges` are the tar's. `notices` are sentences for the person about what was chosen.
    """

    source: Source
    url: str = field(repr=False)
    manifest_url: str
    name: str
    size: int | None
    sha256: str | None
    validator: str | None
    ranges: bool
    member: TarMember | None = None
    notices: tuple[str, ...] = ()
