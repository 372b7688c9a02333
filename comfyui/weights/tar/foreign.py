"""A tar that bake did not make: cog-comfyui's training's (a `weights.json` and model folders) or anybody's.

Its headers are all there is to say what is in it, and nothing proves the bytes but their structure. So every name,
kind and size is judged, and one that is not plainly a weight file in a model folder is passed over if it is harmless,
else refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from comfyui.errors import WeightsError
from comfyui.weights.bring.fetch import Needed
from comfyui.weights.folders import MODEL_FOLDERS, check_member_path, path_key
from comfyui.weights.judge.formats import check_extension
from comfyui.weights.tar.layout import padded
from comfyui.weights.tar.reader import Member, TarReader

MAX_MEMBERS = 10_000
_MAX_END_BYTES = 1024**2
"""Zeros behind the end: a record is 10 KiB by default, and may be a few hundred."""
_MAX_TOP_FOLDERS = 2
"""Folders above the model folders, as in ComfyUI/models/loras."""

_EXTRA_NAMES = re.compile(
    r"(weights\.json|weights_manifest\.json|readme.*|licen[cs]e.*|notice.*|thumbs\.db|desktop\.ini|put_.*_here)",
    re.IGNORECASE,
)
# What people put beside weights: texts, previews, settings. None of it is written.
_EXTRA_ENDINGS = frozenset(
    {".txt", ".md", ".json", ".yaml", ".yml", ".toml", ".csv", ".log", ".sha256", ".html"}
    | {".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4"}
)


class ForeignNames:
    """Judges the members of one tar in their order, and gives each weight file its path below the models folder."""

    def __init__(self, shown: str, *, allow_pickle: bool) -> None:
        self._shown = shown
        self._allow_pickle = allow_pickle
        self._top: tuple[str, ...] | None = None
        self._taken: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        self._count = 0
        self.passed_over: list[str] = []

    def path_of(self, member: Member) -> str | None:
        """The path of a weight file, None for what is passed over. Raises WeightsError for what is refused."""
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise self._refused(member, f"the tar has more than {MAX_MEMBERS} members")
        name = member.name
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise self._refused(member, "it leads out of the models folder")
        if member.is_folder:
            return None
        if member.oddity is not None:
            raise self._refused(member, f"it is {member.oddity}, and only plain files are taken")
        if not parts or _is_extra(parts):
            self.passed_over.append(name)
            return None
        path = "/".join(self._below_top(member, parts))
        check_member_path(path)
        check_extension(path, allow_pickle=self._allow_pickle)
        self._claim(member, path)
        return path

    def _below_top(self, member: Member, parts: list[str]) -> list[str]:
        if self._top is None:
            depth = next((at for at, part in enumerate(parts[: _MAX_TOP_FOLDERS + 1]) if part in MODEL_FOLDERS), None)
            if depth is None or depth == len(parts) - 1:
                raise self._refused(member, "it lies in no model folder of ComfyUI")
            self._top = tuple(parts[:depth])
        if tuple(parts[: len(self._top)]) != self._top:
            raise self._refused(member, f"it does not lie below {'/'.join(self._top)}, as the files before it do")
        return parts[len(self._top) :]

    def _claim(self, member: Member, path: str) -> None:
        key = path_key(path)
        other = self._taken.get(key) or self._folders.get(key)
        above = [key.rsplit("/", count)[0] for count in range(1, key.count("/") + 1)]
        other = other or next((self._taken[folder] for folder in above if folder in self._taken), None)
        if other is not None:
            raise self._refused(member, f"it and {other!r:.300} would be one file, or one in the other")
        self._taken[key] = path
        self._folders.update(dict.fromkeys(above, path))

    def _refused(self, member: Member, fault: str) -> WeightsError:
        return WeightsError(
            f"{self._shown} has {member.name[:300]!r}, which is refused: {fault}. Bake the weights with this model's "
            "training, or make a tar of plain files in model folders, such as loras/my_lora.safetensors.",
            path=member.name,
            expected="a plain file in a model folder",
            seen=fault,
        )


def scan(reader: TarReader, first: Member | None, names: ForeignNames, found: Callable[[Needed], None]) -> None:
    """Read a tar from behind its first header to its end, and give each weight file to `found` as it comes.

    If `found` reads the file's bytes, they are not passed over. Raises WeightsError for a tar that is cut, damaged or
    hostile.
    """
    member, last = first, "its first file"
    while member is not None:
        path = names.path_of(member)
        if path is not None:
            found(Needed(path, member.size, None, None, member.offset))
        last = path or member.name
        # What is not a plain file may say any size, and has no data.
        end = member.offset + (0 if member.is_folder else padded(member.size))
        reader.skip_to(end, last)
        member = reader.next_member(f"the member behind {last}")
    reader.check_zeros(f"the end behind {last}", _MAX_END_BYTES)


def _is_extra(parts: list[str]) -> bool:
    name = parts[-1]
    if any(part.startswith(".") for part in parts):
        return True
    return bool(_EXTRA_NAMES.fullmatch(name)) or PurePosixPath(name).suffix.lower() in _EXTRA_ENDINGS
