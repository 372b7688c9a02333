"""How links stand in a workflow in place of file names, and what the files they bring are called there. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from comfyui.weights.folders import MAX_PART_BYTES
from comfyui.weights.sources.hub_links import is_repo_name

BY_LINK = "by-link"
"""The folder, in a model folder, in which files brought by links appear (`by-link/…/my_lora-0123456789ab.safetensors`).

Folders whose names begin so are ours, and what lies in them goes away again; baked weights never lie there.
"""
_URL = re.compile(r"(https?|hf)://", re.IGNORECASE)
_DIGEST_SHOWN = 12


def is_link(value: object) -> bool:
    """Whether a value is a link to weights instead of a name: a URL, `hf://owner/repo/path` or `owner/repo`.

    Spaces and line ends around it, as they come with copied text, do not count.
    """
    return isinstance(value, str) and (_URL.match(value.strip()) is not None or is_repo_name(value.strip()))


def is_by_link(name: object) -> bool:
    """Whether a value leads into a folder of ours, or a choice is a file there."""
    return isinstance(name, str) and any(part.startswith(BY_LINK) for part in re.split(r"[/\\]", name)[:-1])


def content_name(name: str, sha256: str, *, whole: bool = False) -> str:
    """The file name for the content `sha256` that its server calls `name`; `whole` for two that begin alike.

    ComfyUI keeps results by the names in a workflow, so another content must have another name.
    """
    path = PurePosixPath(name)
    digest = sha256 if whole else sha256[:_DIGEST_SHOWN]
    ending = f"-{digest}{path.suffix}"
    stem = path.stem.encode()[: MAX_PART_BYTES - len(ending.encode())].decode(errors="ignore")
    return stem + ending
