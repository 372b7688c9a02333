"""Folders for files that Cog gives back to the caller after our code has returned."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

KEPT_S = 3600.0
"""How long delivered files stay on disk: long enough for any upload of a tar of weights."""


def new_output_folder(parent: Path, kept_s: float = KEPT_S) -> Path:
    """A fresh folder for what one prediction or training gives back.

    Cog reads or uploads them after run() has returned and never deletes them, so folders older than `kept_s` seconds
    go now.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.iterdir():
        # Another prediction may be sweeping, too.
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > kept_s:
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent))
