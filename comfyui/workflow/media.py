"""input_file: one image, video or sound, or a zip or tar of them, put where a workflow's nodes find it.

A single file is there as `input.<ext>` (the name users of fofr/any-comfyui-workflow write) and under its own name; an
archive keeps its folders.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event

from PIL import Image

from comfyui.archives import DAMAGED, ArchiveInput, archive_suffix, unpack
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


def place_input_file(source: Path, input_dir: Path, stop: Event | None = None) -> list[str]:
    """Put `source` into ComfyUI's input folder; returns the names by which nodes find what is there, sorted.

    Raises InputFileError for a type that is not taken, a damaged archive, or a hostile member of one, and
    StoppedError soon after `stop` is set.
    """
    suffix = source.suffix.lower() if source.suffix.lower() in MEDIA_SUFFIXES | ARCHIVE_SUFFIXES else _sniff(source)
    input_dir.mkdir(parents=True, exist_ok=True)
    if suffix in ARCHIVE_SUFFIXES:
        given = ArchiveInput("input_file", "the input folder", InputFileError, MAX_FILES, MAX_TOTAL_BYTES)
        return sorted(unpack(source, input_dir, given, stop))
    names = {*(f"input{usual}" for usual in SAME_SUFFIXES.get(suffix, (suffix,))), _own_name(source, suffix)}
    for name in names:
        shutil.copyfile(source, input_dir / name)
    return sorted(names)


def _own_name(source: Path, suffix: str) -> str:
    return source.name if source.suffix.lower() == suffix else f"{source.name[:100]}{suffix}"


def _sniff(source: Path) -> str:
    """The suffix that fits the content of a file whose name does not tell."""
    try:
        if suffix := archive_suffix(source):
            return suffix
        with Image.open(source) as image:
            return f".{(image.format or 'png').lower()}"
    except (*DAMAGED, OSError, Image.DecompressionBombError) as error:
        raise InputFileError(
            f"input_file {source.name!r} is no image, and its name does not say what it is. Send an image, a video or "
            "a sound with its usual file ending, or a zip or tar of them."
        ) from error
