"""Pictures, folders and archives of them, as people send them to a training."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from comfyui.training.source_files import SourceFile

Files = Mapping[str, bytes | str]


def picture(
    colour: tuple[int, ...] | int | str = "orange",
    size: tuple[int, int] = (64, 64),
    *,
    mode: str = "RGB",
    kind: str = "PNG",
    **options: Any,
) -> bytes:
    """The bytes of an image file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of(folder: Path, files: Files) -> Path:
    """A folder that holds these files; texts in UTF-8."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def archive_of(path: Path, files: Files) -> Path:
    """A zip or tar, by the path's ending, that holds these files in their order."""
    members = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{'' if path.suffix == '.tar' else path.suffix[1:]}") as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def source_file(folder: Path, name: str, content: bytes | str = b"") -> SourceFile:
    """One file of a dataset in `folder`."""
    folder_of(folder, {name: content})
    return SourceFile(name, folder / name)
