"""Small true weight files, and tars of them, made without torch."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from comfyui.weights.judge.verify import Verifier
from comfyui.weights.manifest import Manifest
from comfyui.weights.tar.archive import ArchiveWriter
from comfyui.weights.tar.layout import plan_layout


def with_header(header: bytes, data: bytes) -> bytes:
    """The safetensors frame around any header and any data."""
    return len(header).to_bytes(8, "little") + header + data


def safetensors(seed: int = 0, size: int = 1000) -> bytes:
    """A safetensors file with two tensors and `size` bytes of data (an even number, at least 4)."""
    half = size // 2 // 2 * 2
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F16", "shape": [half // 2], "data_offsets": [0, half]},
        "b": {"dtype": "U8", "shape": [size - half], "data_offsets": [half, size]},
    }
    return with_header(json.dumps(header).encode(), random.Random(seed).randbytes(size))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_tar(out: Path, files: Mapping[str, bytes], *, allow_pickle: bool = False) -> Manifest:
    """A tar as bake makes it, of files given by path."""
    urls = {path: "https://example.com/" + quote(path.rpartition("/")[2]) for path in files}
    layout = plan_layout([], later=[(path.rpartition("/")[0], url) for path, url in urls.items()])
    with ArchiveWriter(out, layout) as archive:
        for path, data in files.items():
            archive.append(path, urls[path], [data], Verifier(path, allow_pickle=allow_pickle))
        return archive.finish()


def files_below(folder: Path) -> list[str]:
    """Every file below a folder, by relative path; [] for a folder that is not there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


class Report(list[str]):
    """A report callback that remembers its lines."""

    def __call__(self, line: str) -> None:
        self.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self)
