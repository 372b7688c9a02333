"""Zips and tars from outside, unpacked: `input_file` of a prediction, `training_images` of a training.

Everything in an archive is hostile until looked at: only regular files with relative names, in bounded number and size,
come out. Not for weights: their tars are read by `comfyui.weights.tar.reader`.
"""

from __future__ import annotations

import errno
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import IO

from comfyui.errors import RequestError, StoppedError

MAX_PATH_BYTES = 1000
MAX_PATH_PARTS = 30
"""Of a member's path in an archive: ten thousand files a hundred folders deep would eat a disk too."""
CHUNK_BYTES = 1024**2
ENCRYPTED_FLAG = 0x1
"""Of a zip member's flags (APPNOTE.TXT, 4.4.4)."""
CUT = "it is cut short or damaged"
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
"""What the standard library raises for an archive that is cut, damaged or packed in a way it cannot read;
beside OSError with no number or EINVAL (a seek to where a damaged table points)."""


@dataclass(frozen=True)
class ArchiveInput:
    """What an archive is to the person who sent it, and how much may come out of it.

    `name` is the input's and begins every message; `folder` is how messages call where it is unpacked to; `error` makes
    the error from a message.
    """

    name: str
    folder: str
    error: Callable[[str], RequestError]
    max_files: int
    max_total_bytes: int


@dataclass(frozen=True)
class _Member:
    """A regular file in an archive: its name there, and how to read it."""

    name: str
    stream: IO[bytes]


def archive_suffix(source: Path) -> str | None:
    """What an archive is by its content, whatever its name: ".zip", ".tar", or None for none that can be opened."""
    try:
        if zipfile.is_zipfile(source):
            return ".zip"
        return ".tar" if tarfile.is_tarfile(source) else None
    except DAMAGED:
        return None


def unpack(source: Path, folder: Path, given: ArchiveInput, stop: Event | None = None) -> list[str]:
    """Put the files of a zip or tar below `folder`, which exists; returns their names there, in the archive's order.

    What desktops add by themselves is left out. Raises `given.error` for an archive that is damaged, hostile or holds
    too much, and StoppedError soon after `stop` is set; what was unpacked before that stays.
    """
    total = 0
    names: list[str] = []
    taken: set[str] = set()
    with _members(source, given) as members:
        for member in members:
            path = _checked(member.name, source, given)
            if path.parts[0] == "__MACOSX" or path.name in (".DS_Store", "Thumbs.db"):
                continue
            # On some disks A.png and a.png are one file.
            if path.as_posix().casefold() in taken:
                raise given.error(f"{given.name} {source.name!r} holds {member.name!r} twice; nothing of it was used.")
            taken.add(path.as_posix().casefold())
            if len(taken) > given.max_files:
                raise given.error(f"{given.name} {source.name!r} holds more than {given.max_files} files.")
            with _create(folder / path, member, source, given) as out:
                while chunk := member.stream.read(CHUNK_BYTES):
                    total += len(chunk)
                    if total > given.max_total_bytes:
                        raise given.error(
                            f"{given.name} {source.name!r} unpacks to more than {given.max_total_bytes >> 30} GiB."
                        )
                    if stop is not None and stop.is_set():
                        raise StoppedError(f"Unpacking {given.name} was stopped.")
                    out.write(chunk)
            names.append(path.as_posix())
    return names


def _create(target: Path, member: _Member, source: Path, given: ArchiveInput) -> IO[bytes]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("wb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise given.error(
            f"{given.name} {source.name!r} holds {member.name!r}, where a file and a folder have the same name."
        ) from error


@contextmanager
def _members(source: Path, given: ArchiveInput) -> Iterator[Iterator[_Member]]:
    """The files of a zip or tar; what a damaged one raises is turned into the input's error here, once.

    The generators are closed before the archive: a zip stays open as long as one of its members is.
    """
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive, closing(_zip_members(archive, given)) as members:
                yield members
        else:
            with tarfile.open(source, "r:*") as tar, closing(_tar_members(tar, given)) as members:
                yield members
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        # An end of file in the middle of a zip's member comes without words.
        reason = next(iter(str(error).splitlines()), CUT).rstrip(":.")
        raise given.error(f"{given.name} {source.name!r} cannot be unpacked: {reason}.") from error


def _zip_members(archive: zipfile.ZipFile, given: ArchiveInput) -> Generator[_Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.filename.endswith("/"):  # Not is_dir(): it raises for a member without a name.
            continue
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise given.error(f"{given.name} holds {info.filename!r}, which is a link or device, not a file.")
        if info.flag_bits & ENCRYPTED_FLAG:
            raise given.error(f"{given.name} holds {info.filename!r} encrypted; send an archive without a password.")
        with archive.open(info) as stream:
            yield _Member(info.filename, stream)


def _tar_members(tar: tarfile.TarFile, given: ArchiveInput) -> Generator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        stream = tar.extractfile(info) if info.isreg() else None
        if stream is None:
            raise given.error(f"{given.name} holds {info.name!r}, which is a link or device, not a file.")
        with stream:
            yield _Member(info.name, stream)
    # tarfile takes a damaged or missing header for the end. The end is zeros, and after it a packed tar's checksum.
    assert tar.fileobj is not None  # noqa: S101 - it was opened by name
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(CHUNK_BYTES)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError(CUT)


def _checked(name: str, source: Path, given: ArchiveInput) -> PurePosixPath:
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts
    if bad:
        raise given.error(
            f"{given.name} {source.name!r} holds a file named {name!r}, which leads out of {given.folder}."
        )
    long = any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(name)) > MAX_PATH_BYTES
    if long or len(path.parts) > MAX_PATH_PARTS:
        raise given.error(f"{given.name} {source.name!r} holds a file with too long a name: {name[:80]!r}….")
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python reads bytes that are not UTF-8
        raise given.error(f"{given.name} {source.name!r} holds a file whose name is not UTF-8: {name!r}.")
    return path
