"""Paths that a person types: relative to the folder they typed them in, though the scripts change into the project."""

from __future__ import annotations

import os
from pathlib import Path


def typed_path(text: str) -> Path:
    """The absolute path of what was typed; scripts/lib.sh keeps the caller's folder in CALLER_DIR."""
    return (Path(os.environ.get("CALLER_DIR", ".")) / Path(text).expanduser()).absolute()


def typed_url_or_path(text: str) -> str:
    """A URL as it is; the path of a file that is there, made absolute."""
    path = typed_path(text)
    return str(path) if "://" not in text and path.is_file() else text
