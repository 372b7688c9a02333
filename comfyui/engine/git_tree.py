"""The hash git gives a folder, without git: one number that stands for every name, mode and byte in it.

A tree hash pins ComfyUI's source whatever it travelled in (an archive's own bytes change with the tool that packed
it). Format: the "Git Objects" chapter of the Git book. An object's hash is the SHA-1 of "<kind> <size>\\0<content>"; a
tree's content is, for each entry in order, "<mode> <name>\\0" and the 20 raw bytes of the entry's own hash.
SHA-1 is git's choice, used here to recognise a tree; the archive it comes from is pinned by SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FILE = "100644"
EXECUTABLE = "100755"
LINK = "120000"
_FOLDER = "40000"


@dataclass(frozen=True)
class TreeFile:
    """One file of a tree: git's mode, the hex hash of its blob, and its path with forward slashes."""

    mode: str
    blob: str
    path: str


def blob_hash(content: bytes) -> str:
    """Hex hash that git gives a file with this content."""
    return _object_hash("blob", content).hex()


def tree_hash(files: Iterable[TreeFile]) -> str:
    """Hex hash that git gives a folder of these files: what `git add -f -A; git write-tree` prints."""
    return _tree_hash([(file.path.encode(), file) for file in files]).hex()


def read_tree(root: Path, *, skip: frozenset[str] = frozenset()) -> list[TreeFile]:
    """Every file below `root`, hashed, in order of path. Entries whose name is in `skip` are left out at any depth.

    Git keeps no empty folders, so neither does this list. Raises OSError where something cannot be read.
    """
    files = []
    for folder, folder_names, file_names in os.walk(root, onerror=_raise):
        linked = [name for name in folder_names if Path(folder, name).is_symlink()]
        folder_names[:] = [name for name in folder_names if name not in skip and name not in linked]
        for name in file_names + linked:
            if name in skip:
                continue
            path = Path(folder, name)
            mode = LINK if path.is_symlink() else EXECUTABLE if path.stat().st_mode & 0o100 else FILE
            files.append(TreeFile(mode, blob_of(path), path.relative_to(root).as_posix()))
    return sorted(files, key=lambda file: file.path)


def blob_of(path: Path) -> str:
    """Hex hash that git gives the file at `path`; a link is hashed as its target's name. Raises OSError."""
    return blob_hash(os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes())


def _tree_hash(files: list[tuple[bytes, TreeFile]]) -> bytes:
    entries: list[tuple[bytes, str, bytes]] = []
    folders: dict[bytes, list[tuple[bytes, TreeFile]]] = {}
    for path, file in files:
        name, slash, rest = path.partition(b"/")
        if slash:
            folders.setdefault(name, []).append((rest, file))
        else:
            entries.append((name, file.mode, bytes.fromhex(file.blob)))
    entries += [(name, _FOLDER, _tree_hash(inside)) for name, inside in folders.items()]
    # Git sorts a folder as if its name ended in "/": "a.py" comes before the folder "a", and "a-b" before both.
    entries.sort(key=lambda entry: entry[0] + b"/" if entry[1] == _FOLDER else entry[0])
    return _object_hash("tree", b"".join(mode.encode() + b" " + name + b"\0" + hash_ for name, mode, hash_ in entries))


def _object_hash(kind: str, content: bytes) -> bytes:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).digest()


def _raise(error: OSError) -> None:
    raise error
