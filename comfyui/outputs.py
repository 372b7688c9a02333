"""What a run made: the files and texts ComfyUI reports, in workflow order, converted where asked for, safely named.

Not for: finding out that a run is done (engine), or what the nodes are (workflow).
"""

from __future__ import annotations

import mmap
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from comfyui.engine.server import EngineFolders
from comfyui.errors import EngineError, StoppedError
from comfyui.images import STILL_SUFFIXES, ImageOptions, deliver_image
from comfyui.metadata import IN_PLACE_SUFFIXES, changes_in_place
from comfyui.workflow.parse import Workflow

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


def deliver(outputs: Sequence[Output], out_dir: Path, options: ImageOptions, stop: Event | None = None) -> list[Path]:
    """Put each file into `out_dir` and return the paths, in the same order.

    Names sort in that order and never collide: `000-<node id>-<name by ComfyUI>.<suffix>`. Still images become what
    `options` say; every other file stays as it is, but for the workflow in it: it has the person's own names again, or
    is blank if it is not wanted. A text becomes `000-<node id>-text.txt`, in UTF-8. Raises StoppedError soon
    after `stop` is set.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    delivered = []
    digits = max(3, len(str(len(outputs) - 1)))
    for number, output in enumerate(outputs):
        if stop is not None and stop.is_set():
            raise StoppedError("Delivering the files was stopped.")
        start = f"{number:0{digits}d}-{_safe(output.node_id)}"
        if isinstance(output, OutputText):
            delivered.append(_deliver_text(output.text, out_dir / f"{start}-text.txt"))
        else:
            stem = f"{start}-{_safe(output.path.stem).strip('_') or 'output'}"
            delivered.append(_deliver_file(output.path, out_dir / stem, options))
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


def _deliver_file(source: Path, target_stem: Path, options: ImageOptions) -> Path:
    suffix = _safe(source.suffix.lower())
    if suffix in STILL_SUFFIXES:
        return deliver_image(source, target_stem, options)
    target = target_stem.with_name(target_stem.name + suffix)
    shutil.copyfile(source, target)
    if suffix in IN_PLACE_SUFFIXES and target.stat().st_size:
        with target.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as file:
            changes = changes_in_place(file, options.run_folder, keep_prompt=options.embed_workflow)
            for position, text in list(changes):
                file[position : position + len(text)] = text
    return target


def _inside(base: Path, subfolder: str, filename: str) -> Path:
    path = (base / subfolder / filename).resolve()
    if not path.is_relative_to(base.resolve()):
        raise EngineError(f"A node reports the output {filename!r} in {subfolder!r}, outside ComfyUI's output folder.")
    return path


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).encode()[:80].decode(errors="ignore")
