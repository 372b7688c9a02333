"""input_file: one image, video or sound, or a zip or tar of them, put where a workflow's nodes find it.

A single file is there as `input.<ext>` (the name users of fofr/any-comfyui-workflow write) and under its own name; an
archive keeps its folders. Everything in an archive is hostile until looked at: only regular files with relative names,
in bounded number and size, come out.
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image

from comfyui.errors import InputFileError

MEDIA_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff", ".tif"),
    *(".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v"),
    *(".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"),
}
SAME_SUFFIXES = {".jpeg": (".jpeg", ".jpg"), ".jpg": (".jpg", ".jpeg"), ".mpo": (".jpg", ".jpeg")}
"""Endings for one kind of file: people write the usual one into their workflow, whatever their file's own is."""
ARCHIVE_SUFFIXES = {".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz"}
MAX_FILES = 10_000
MAX_TOTAL_BYTES = 8 * 1024**3
MAX_PATH_BYTES = 1000
MAX_PATH_PARTS = 30
"""Of a member's path in an archive: ten thousand files a hundred folders deep would eat a disk too."""
CHUNK_BYTES = 1024**2
ENCRYPTED_FLAG = 0x1
"""Of a zip member's flags (APPNOTE.TXT, 4.4.4)."""
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
"""What the standard library raises for an archive that is cut, damaged or packed in a way it cannot read;
beside OSError with no number or EINVAL (a seek to where a damaged table points)."""


@dataclass(frozen=True)
class _Member:
    """A regular file in an archive: its name there, and how to read it."""

    name: str
    stream: IO[bytes]


def place_input_file(source: Path, input_dir: Path) -> list[str]:
    """Put `source` into ComfyUI's input folder; returns the names by which nodes find what is there, sorted.

    Raises InputFileError for a type that is not taken, a damaged archive, or a hostile member of one.
    """
    suffix = source.suffix.lower() if source.suffix.lower() in MEDIA_SUFFIXES | ARCHIVE_SUFFIXES else _sniff(source)
    input_dir.mkdir(parents=True, exist_ok=True)
    if suffix in ARCHIVE_SUFFIXES:
        return sorted(_unpack(source, input_dir))
    names = {*(f"input{usual}" for usual in SAME_SUFFIXES.get(suffix, (suffix,))), _own_name(source, suffix)}
    for name in names:
        shutil.copyfile(source, input_dir / name)
    return sorted(names)


def clear_folder(folder: Path) -> None:
    """Remove everything in a folder, not the folder: ComfyUI keeps its path."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _own_name(source: Path, suffix: str) -> str:
    return source.name if source.suffix.lower() == suffix else f"{source.name[:100]}{suffix}"


def _sniff(source: Path) -> str:
    """The suffix that fits the content of a file whose name does not tell."""
    try:
        if zipfile.is_zipfile(source):
            return ".zip"
        if tarfile.is_tarfile(source):
            return ".tar"
        with Image.open(source) as image:
            return f".{(image.format or 'png').lower()}"
    except (*DAMAGED, OSError, Image.DecompressionBombError) as error:
        raise InputFileError(
            f"input_file {source.name!r} is no image, and its name does not say what it is. Send an image, a video or "
            "a sound with its usual file ending, or a zip or tar of them."
        ) from error


def _unpack(source: Path, input_dir: Path) -> Iterator[str]:
    total = 0
    targets: set[str] = set()
    with _members(source) as members:
        for member in members:
            path = _checked(member.name, source)
            if path.parts[0] == "__MACOSX" or path.name in (".DS_Store", "Thumbs.db"):
                continue  # What desktops put into archives by themselves.
            # On some disks A.png and a.png are one file.
            if path.as_posix().casefold() in targets:
                raise InputFileError(f"input_file {source.name!r} holds {member.name!r} twice; nothing of it was used.")
            targets.add(path.as_posix().casefold())
            if len(targets) > MAX_FILES:
                raise InputFileError(f"input_file {source.name!r} holds more than {MAX_FILES} files.")
            with _create(input_dir / path, member, source) as out:
                while chunk := member.stream.read(CHUNK_BYTES):
                    total += len(chunk)
                    if total > MAX_TOTAL_BYTES:
                        raise InputFileError(
                            f"input_file {source.name!r} unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB."
                        )
                    out.write(chunk)
            yield path.as_posix()


def _create(target: Path, member: _Member, source: Path) -> IO[bytes]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("wb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputFileError(
            f"input_file {source.name!r} holds {member.name!r}, where a file and a folder have the same name."
        ) from error


@contextmanager
def _members(source: Path) -> Iterator[Iterator[_Member]]:
    """The files of a zip or tar; what a damaged one raises is turned into InputFileError here, once."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                yield _zip_members(archive)
        else:
            with tarfile.open(source, "r:*") as tar:
                yield _tar_members(tar)
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = str(error).splitlines()[0].rstrip(":.")
        raise InputFileError(f"input_file {source.name!r} cannot be unpacked: {reason}.") from error


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.is_dir():
            continue
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise InputFileError(f"input_file holds {info.filename!r}, which is a link or device, not a file.")
        if info.flag_bits & ENCRYPTED_FLAG:
            raise InputFileError(f"input_file holds {info.filename!r} encrypted; send an archive without a password.")
        with archive.open(info) as stream:
            yield _Member(info.filename, stream)


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        stream = tar.extractfile(info) if info.isreg() else None
        if stream is None:
            raise InputFileError(f"input_file holds {info.name!r}, which is a link or device, not a file.")
        with stream:
            yield _Member(info.name, stream)
    # tarfile takes a damaged or missing header for the end. The end is zeros, and after it a packed tar's checksum.
    assert tar.fileobj is not None  # noqa: S101 - it was opened by name
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(CHUNK_BYTES)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError("it is cut short or damaged")


def _checked(name: str, source: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts
    if bad:
        raise InputFileError(
            f"input_file {source.name!r} holds a file named {name!r}, which leads out of the input folder."
        )
    long = any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(name)) > MAX_PATH_BYTES
    if long or len(path.parts) > MAX_PATH_PARTS:
        raise InputFileError(f"input_file {source.name!r} holds a file with too long a name: {name[:80]!r}….")
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python reads bytes that are not UTF-8
        raise InputFileError(f"input_file {source.name!r} holds a file whose name is not UTF-8: {name!r}.")
    return path
