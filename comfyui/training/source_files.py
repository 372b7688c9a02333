"""The files of a dataset as a person has it: a folder or an unpacked archive, listed in one order everywhere."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comfyui.errors import TrainingInputError
from comfyui.training.remarks import INPUT_NAME, Skipped, shown

MAX_FILES = 10_000
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
REFUSED_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".psd", ".svg"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
)
"""Images that are not read; a person who sends one means it to be learnt from, so it is never left out in silence."""
DESKTOP_FILES = ("__macosx", "thumbs.db", "desktop.ini")
"""What desktops put into folders by themselves, beside names that begin with a dot."""


@dataclass(frozen=True)
class SourceFile:
    """A file of the dataset: its name as the person knows it ("10_fox/a.jpg", always with "/"), and where it lies."""

    name: str
    path: Path

    @property
    def folder(self) -> str:
        """Its folder's name ("10_fox"), "" at the top."""
        return self.name.rpartition("/")[0]

    @property
    def suffix(self) -> str:
        """Its ending in small letters (".jpg")."""
        return self.path.suffix.lower()


def list_files(folder: Path) -> tuple[list[SourceFile], list[Skipped]]:
    """Every file below a folder that is not hidden, in natural order, and the links to folders, which are not followed.

    Raises TrainingInputError for a folder that cannot be read, or that holds more than MAX_FILES files.
    """
    files = []
    skipped = []
    for path in _walk(folder):
        name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
        if path.is_file():
            files.append(SourceFile(name, path))
        else:
            skipped.append(Skipped(name, "not a file, but a link to a folder or to nothing, or a device"))
        if len(files) > MAX_FILES:
            raise TrainingInputError(
                f"{INPUT_NAME} {shown(str(folder))} holds more than {MAX_FILES} files.", input_name=INPUT_NAME
            )
    return sorted(files, key=lambda file: natural_key(file.name)), sorted(skipped, key=lambda s: natural_key(s.source))


def natural_key(name: str) -> tuple[object, ...]:
    """Sorts names as people count: a2 before a10, whatever the case; folder by folder."""
    parts = [re.split(r"(\d+)", part.casefold(), flags=re.ASCII) for part in name.split("/")]
    # Text and digits take turns in each part, so only like is compared with like.
    folded = [[int(piece) if index % 2 else piece for index, piece in enumerate(part)] for part in parts]
    return (folded, name)


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise TrainingInputError(
            f"{INPUT_NAME}: {shown(str(error.filename))} cannot be read: {error.strerror}.", input_name=INPUT_NAME
        ) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from (Path(place) / name for name in [*linked, *names] if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in DESKTOP_FILES
