"""Where everything lies in a tar of weights, known before the first byte of a file is: pure arithmetic.

The manifest is the first member and is known last, so its room is reserved and padded with spaces, which JSON allows.
GNU format (tar(5), "GNU tar archives"): a member's header is as long as its name asks for, whatever its size, and
sizes above 8 GiB fit. Times, owners and modes are fixed, so the same files from the same links give the same bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from dataclasses import dataclass

from comfyui.errors import WeightsError
from comfyui.weights.folders import check_member_path, path_key
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, room_for

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE


@dataclass(frozen=True)
class Planned:
    """A file that shall lie in the tar: its path there, the URL for the manifest, its size in bytes."""

    path: str
    url: str | None
    size: int


@dataclass(frozen=True)
class Place:
    """Where a planned file lies: its header at `header_at`, its bytes at `offset`, the next member at `end`."""

    planned: Planned
    header_at: int
    offset: int
    end: int


@dataclass(frozen=True)
class Layout:
    """A whole tar: `manifest_room` bytes for the manifest's text, then the places, up to `end`."""

    manifest_room: int
    places: tuple[Place, ...]
    end: int

    @property
    def length(self) -> int:
        """Bytes of the tar, its end included."""
        return tar_length(self.end)

    def manifest_blocks(self, manifest: Manifest) -> bytes:
        """The tar's beginning: the manifest's header and its text, padded to the room it has."""
        text = manifest.dump().rstrip(b"\n")
        if len(text) >= self.manifest_room:
            raise ValueError(f"the manifest takes {len(text)} bytes, but {self.manifest_room} were reserved")
        # The line end goes last, so that `tar -xO` leaves a terminal in order.
        return member_header(MANIFEST_NAME, self.manifest_room) + text.ljust(self.manifest_room - 1) + b"\n"


def plan_layout(
    files: Iterable[Planned], later: Iterable[tuple[str, str | None]] = (), *, record_bytes: int = 0
) -> Layout:
    """Lay out the files in their order; `later` are (folder, URL) of files of unknown size that will be appended, and
    `record_bytes` is the room in the manifest for what they were made from.

    Raises WeightsError for a bad path, or two files on one path.
    """
    files = tuple(files)
    listed = [(file.path.rpartition("/")[0], file.url) for file in files]
    manifest_room = padded(room_for([*listed, *later]) + record_bytes)
    position = len(member_header(MANIFEST_NAME, 0)) + manifest_room
    places: list[Place] = []
    taken: set[str] = set()
    for file in files:
        check_member_path(file.path)
        if path_key(file.path) in taken:
            raise WeightsError(f"{file.path} is in the tar already.", path=file.path, expected="a path used once")
        taken.add(path_key(file.path))
        offset = position + len(member_header(file.path, file.size))
        end = padded(offset + file.size)
        places.append(Place(file, position, offset, end))
        position = end
    return Layout(manifest_room, tuple(places), position)


def padded(size: int, unit: int = BLOCK) -> int:
    """`size` bytes rounded up to whole units."""
    return -(-size // unit) * unit


def tar_length(data_end: int) -> int:
    """Length in bytes of a tar whose last member's data, padding included, ends at `data_end`."""
    return padded(data_end + 2 * BLOCK, RECORD)


def member_header(name: str, size: int) -> bytes:
    """The header blocks of a member, a long-name record included where the name needs one."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT, encoding="utf-8", errors="strict")
