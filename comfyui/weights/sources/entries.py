"""A training input split into its entries. Pure."""

from __future__ import annotations

import re

_COMMENT = re.compile(r"(?:^|(?<=[\s,]))#.*$")
_BETWEEN_ENTRIES = re.compile(r",\s+|,(?=https?://|hf://)|,$")


def parse_list(text: str | None) -> list[str]:
    """The entries of a training input, in order, without blank lines, comments and the spaces around entries.

    Entries stand on lines of their own or behind commas. A URL may hold commas, so a comma separates entries only
    where it cannot be part of one: before a space, before `https://`, `http://` or `hf://`, at a line's end, and
    anywhere in a piece without `://`, such as `owner/repo,owner/other`. `#` begins a comment at a line's start, after a
    space or a comma; in `https://…/a.safetensors#name=b.safetensors` it belongs to the URL.
    """
    entries: list[str] = []
    for line in (text or "").splitlines():
        for piece in _BETWEEN_ENTRIES.split(_COMMENT.sub("", line).strip()):
            entries += [piece] if "://" in piece else piece.split(",")
    return [entry.strip() for entry in entries if entry.strip()]
