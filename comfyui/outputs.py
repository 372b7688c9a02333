"""What a run made: the files and texts ComfyUI reports, in workflow order, converted where asked for, safely named.

Not for: finding out that a run is done (engine), or what the nodes are (workflow).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from comfyui.engine.server import EngineFolders
from comfyui.errors import EngineError
from comfyui.workflow.parse import Workflow

STILL_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
PILLOW_FORMATS = {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24
"""Where a PNG file says how many bits a channel has (PNG specification, 5.2 and 11.2.2)."""
WHITE = (255, 255, 255)
TEXT_SUFFIXES = {".txt", ".csv", ".md", ".json"}
"""What SaveText writes (comfy_extras/nodes_text.py)."""
MODEL_SUFFIXES = (".glb", ".gltf", ".obj", ".fbx", ".stl", ".usdz", ".ply", ".splat", ".spz", ".ksplat")
"""The 3D files of ComfyUI (comfy_api/latest/_io.py): meshes, then point clouds and splats."""
MODEL_PREVIEW_PREFIX = "preview3d_"
"""ComfyUI keeps 3D previews among its results, under this name (comfy_extras/nodes_load_3d.py)."""


@dataclass(frozen=True)
class OutputFile:
    """One file that a node reports: `kind` is ComfyUI's word for it ("images", "audio", …).

    `place` is "output" for results and "temp" for previews; `path` is where ComfyUI wrote it.
    """

    node_id: str
    kind: str
    place: str
    path: Path


@dataclass(frozen=True)
class OutputText:
    """One text that a node reports and keeps in no file; it becomes one."""

    node_id: str
    text: str
    place: str = "output"


Output = OutputFile | OutputText


def reported_files(
    outputs: Mapping[str, Mapping[str, Any]], workflow: Workflow, folders: EngineFolders
) -> list[Output]:
    """The files and texts in a history entry's outputs, in the order of the workflow's nodes.

    Raises EngineError for a name that leads out of ComfyUI's own folders: custom nodes write these names.
    """
    return [
        output
        for node_id in sorted(outputs, key=workflow.position)
        for output in _of_node(node_id, outputs[node_id], folders)
    ]


def deliver(outputs: Sequence[Output], out_dir: Path, output_format: str, output_quality: int) -> list[Path]:
    """Put each file into `out_dir` and return the paths, in the same order.

    Names sort in that order and never collide: `000-<node id>-<name by ComfyUI>.<suffix>`. Still 8-bit images become
    `output_format` ("webp", "jpg" or "png"; quality 0 to 100, unused for png); everything else stays as it is, and so
    does an image that cannot become that, such as one of more than the 16383 pixels a side that WebP has room for.
    A text becomes `000-<node id>-text.txt`, in UTF-8.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    delivered = []
    digits = max(3, len(str(len(outputs) - 1)))
    for number, output in enumerate(outputs):
        start = f"{number:0{digits}d}-{_safe(output.node_id)}"
        if isinstance(output, OutputText):
            delivered.append(_deliver_text(output.text, out_dir / f"{start}-text.txt"))
        else:
            stem = f"{start}-{_safe(output.path.stem).strip('_') or 'output'}"
            delivered.append(_deliver_one(output.path, out_dir / stem, output_format, output_quality))
    return delivered


def _of_node(node_id: str, reported: Mapping[str, Any], folders: EngineFolders) -> list[Output]:
    files: list[OutputFile] = []
    texts: list[str] = []
    for kind, entries in reported.items():
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            continue
        files += _entry_files(node_id, kind, entries, folders)
        if kind == "result":
            files += _model_files(node_id, entries, folders)
        elif kind == "text":
            texts = _texts(entries)
    if any(file.path.suffix in TEXT_SUFFIXES for file in files):
        texts = []  # SaveText reports its text beside the file that holds it.
    return [*dict.fromkeys(files), *(OutputText(node_id, text) for text in texts)]


def _entry_files(node_id: str, kind: str, entries: Sequence[Any], folders: EngineFolders) -> Iterator[OutputFile]:
    """Nearly every saving node's way: one mapping for each file."""
    places = {"output": folders.output, "temp": folders.temp}
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("type") in places and entry.get("filename"):
            path = _inside(places[entry["type"]], str(entry.get("subfolder") or ""), str(entry["filename"]))
            yield OutputFile(node_id, kind, str(entry["type"]), path)


def _model_files(node_id: str, entries: Sequence[Any], folders: EngineFolders) -> list[OutputFile]:
    """The way of newer 3D nodes: a name below the output folder, then the camera and the rest of the view.

    Such a node may show any file and any text, so a name counts if a 3D file is there. A preview's does anyway: where
    it is gone, ComfyUI answered from its cache.
    """
    name = entries[0] if entries else None
    if isinstance(name, str) and name.lower().endswith(MODEL_SUFFIXES):
        with suppress(OSError, ValueError):  # A text is seldom a path that a disk takes.
            path = (folders.output / name).resolve()
            preview = path.name.startswith(MODEL_PREVIEW_PREFIX)
            if path.is_relative_to(folders.output.resolve()) and (preview or path.is_file()):
                return [OutputFile(node_id, "result", "temp" if preview else "output", path)]
    return []


def _texts(entries: Sequence[Any]) -> list[str]:
    texts = [entry for entry in entries if isinstance(entry, str)]
    # ComfyUI takes a node's single text, given without a list, for a list of its letters.
    return ["".join(texts)] if len(texts) > 1 and all(len(text) == 1 for text in texts) else texts


def _deliver_text(text: str, target: Path) -> Path:
    # Half of a surrogate pair can stand in JSON, but not in UTF-8.
    target.write_bytes(text.encode(errors="replace"))
    return target


def _deliver_one(source: Path, target_stem: Path, output_format: str, output_quality: int) -> Path:
    suffix = _safe(source.suffix.lower())
    wanted = f".{output_format}"
    if suffix in STILL_SUFFIXES and suffix != wanted and (suffix, wanted) != (".jpeg", ".jpg"):
        # The work is done and the file is there: better in its own format than not at all.
        with suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(source) as image:
            if getattr(image, "n_frames", 1) == 1 and _is_eight_bit(image, source):
                return _convert(image, target_stem.with_name(target_stem.name + wanted), output_format, output_quality)
    target = target_stem.with_name(target_stem.name + suffix)
    shutil.copyfile(source, target)
    return target


def _is_eight_bit(image: Image.Image, source: Path) -> bool:
    """Pillow opens a PNG of 16 bits a channel as "RGB" too, and halves them."""
    with source.open("rb") as stream:
        head = stream.read(PNG_DEPTH_AT + 1)
    return image.mode in EIGHT_BIT_MODES and not (head.startswith(PNG_SIGNATURE) and head[PNG_DEPTH_AT] > 8)


def _convert(image: Image.Image, target: Path, output_format: str, output_quality: int) -> Path:
    if output_format == "jpg":
        image = _without_alpha(image)
    else:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.save(target, PILLOW_FORMATS[output_format], quality=output_quality)
    return target


def _without_alpha(image: Image.Image) -> Image.Image:
    """JPEG has no alpha channel: what is transparent becomes white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def _inside(base: Path, subfolder: str, filename: str) -> Path:
    path = (base / subfolder / filename).resolve()
    if not path.is_relative_to(base.resolve()):
        raise EngineError(f"A node reports the output {filename!r} in {subfolder!r}, outside ComfyUI's output folder.")
    return path


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).encode()[:80].decode(errors="ignore")
