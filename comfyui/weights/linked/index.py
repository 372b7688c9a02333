"""Which content is kept, which links gave it, and when it was last used. Pure, but for reading and writing its file.

It is the memory of a cache: what it does not know, or what a power cut takes from it, is fetched again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from comfyui.weights.disk import part_beside

VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Content:
    """What is known of the file behind a link once its server has been asked.

    `link` stands for the link (see `linked`), `size` is in bytes, `validator` is good for saying that content is the
    same, `published` the SHA-256 by its site, `given` the one behind the link's `#`; each is None where nobody says.
    """

    link: str
    size: int | None
    validator: str | None
    published: str | None
    given: str | None


@dataclass(frozen=True)
class Kept:
    """A file that is kept; `used` is when a prediction last had it, in seconds since 1970."""

    sha256: str
    size: int
    used: float


@dataclass(frozen=True)
class KnownLink:
    """What a link gave when it was last fetched."""

    link: str
    size: int
    validator: str | None
    sha256: str


@dataclass
class Index:
    """The files that are kept, by SHA-256, and the links that gave them, by `Content.link`."""

    files: dict[str, Kept] = field(default_factory=dict)
    links: dict[str, KnownLink] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The index at `path`; an empty one where there is none, or none that makes sense."""
        try:
            document = json.loads(path.read_bytes())
            files = [Kept(**entry) for entry in document["files"]]
            links = [KnownLink(**entry) for entry in document["links"]]
            entries: list[Kept | KnownLink] = [*files, *links]
            if document["version"] != VERSION or not all(map(_makes_sense, entries)):
                return cls()
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return cls()
        return cls({kept.sha256: kept for kept in files}, {known.link: known for known in links})

    def save(self, path: Path) -> None:
        """Write it beside `path`, then rename it. Raises OSError."""
        document: Mapping[str, Any] = {
            "version": VERSION,
            "files": [asdict(kept) for kept in self.files.values()],
            "links": [asdict(known) for known in self.links.values()],
        }
        part = part_beside(path)
        try:
            part.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def find(self, content: Content) -> Kept | None:
        """The file that surely is this content, None where nothing says so.

        Only what the file's own server says counts: with a SHA-256 that a caller merely claims, anybody could have a
        file that another caller's token has brought. The claim is enough for a link that gave that very file before.
        """
        if content.published is not None:
            return self.files.get(content.published)
        known = self.links.get(content.link)
        if known is None or known.size != content.size:
            return None
        unchanged = content.validator is not None and content.validator == known.validator
        return self.files.get(known.sha256) if unchanged or content.given == known.sha256 else None

    def add(self, kept: Kept, content: Content) -> None:
        """Remember a file, and that this link gave it."""
        self.files[kept.sha256] = kept
        self.links[content.link] = KnownLink(content.link, kept.size, content.validator, kept.sha256)

    def use(self, kept: Kept, now: float) -> None:
        """Remember that a file is used at `now`."""
        self.files[kept.sha256] = replace(kept, used=now)

    def forget(self, sha256: str) -> None:
        """Forget a file and the links that gave it."""
        self.files.pop(sha256, None)
        self.links = {link: known for link, known in self.links.items() if known.sha256 != sha256}

    def least_recently_used(self) -> list[Kept]:
        """All files, the one that was not used for longest first."""
        return sorted(self.files.values(), key=lambda kept: kept.used)


def _makes_sense(entry: Kept | KnownLink) -> bool:
    # The SHA-256 becomes the name of a file.
    named = isinstance(entry.sha256, str) and _SHA256.fullmatch(entry.sha256) is not None
    return named and type(entry.size) is int and (isinstance(entry, KnownLink) or isinstance(entry.used, int | float))
