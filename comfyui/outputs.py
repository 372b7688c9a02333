"""What a run made: the files ComfyUI reports, in workflow order, converted where that was asked for, under safe names.

Not for: finding out that a run is done (engine), or what the nodes are (workflow).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class OutputFile:
    """One file that a node reports: `kind` is ComfyUI's word for it ("images", "audio", …).

    `place` is "output" for results and "temp" for previews; `path` is where ComfyUI wrote it.
    """

    node_id: str
    kind: str
    place: str
    path: Path


def reported_files(
    outputs: Mapping[str, Mapping[str, Any]], workflow: Workflow, folders: EngineFolders
) -> list[OutputFile]:
    """The files in a history entry's outputs, in the order of the workflow's nodes.

    Raises EngineError for a name that leads out of ComfyUI's own folders: custom nodes write these names.
    """
    places = {"output": folders.output, "temp": folders.temp}
    files = []
    for node_id in sorted(outputs, key=workflow.position):
        for kind, entries in outputs[node_id].items():
            for entry in entries if isinstance(entries, Sequence) and not isinstance(entries, str) else ():
                if isinstance(entry, Mapping) and entry.get("type") in places and entry.get("filename"):
                    base = places[entry["type"]]
                    path = _inside(base, str(entry.get("subfolder") or ""), str(entry["filename"]))
                    files.append(OutputFile(node_id, str(kind), str(entry["type"]), path))
    return list(dict.fromkeys(files))


def deliver(files: Sequence[OutputFile], out_dir: Path, output_format: str, output_quality: int) -> list[Path]:
    """Put each file into `out_dir` and return the paths, in the same order.

    Names sort in that order and never collide: `000-<node id>-<name by ComfyUI>.<suffix>`. Still 8-bit images become
    `output_format` ("webp", "jpg" or "png"; quality 0 to 100, unused for png); everything else stays as it is, and so
    does an image that cannot become that, such as one of more than the 16383 pixels a side that WebP has room for.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    delivered = []
    digits = max(3, len(str(len(files) - 1)))
    for number, file in enumerate(files):
        stem = f"{number:0{digits}d}-{_safe(file.node_id)}-{_safe(file.path.stem).strip('_') or 'output'}"
        delivered.append(_deliver_one(file.path, out_dir / stem, output_format, output_quality))
    return delivered


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
