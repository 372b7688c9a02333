"""scripts/workflow: look at a workflow before any money is spent.

    check FILE      every problem ComfyUI would have with it, and those it would not mention
    convert FILE    the API format of a workflow in UI format, on standard output and nothing else there
    describe FILE   its nodes, the models it needs, the inputs a person may want to change, what it saves

With --object-info (a saved /object_info) no ComfyUI is needed; without it, `check` and a UI format make ours start and
answer.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui.engine.engine import Engine
from comfyui.errors import ComfyUIModelError, NodeProblem, RequestError, WorkflowError
from comfyui.local.paths import typed_path
from comfyui.settings import Settings
from comfyui.weights.linked.names import is_link
from comfyui.workflow.check import check
from comfyui.workflow.convert import convert, is_ui_format
from comfyui.workflow.node_classes import InputSpec, NodeClasses
from comfyui.workflow.parse import Node, Workflow, read_json, workflow_of

GZIP_MAGIC = b"\x1f\x8b"
WEIGHT_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx")
FILE_INPUTS = {"image", "video", "audio", "file", "mask", "model_file"}
PROMPT_INPUTS = {"text", "prompt", "negative_prompt", "positive_prompt", "text_g", "text_l", "clip_l", "t5xxl", "value"}
CHANGED_INPUTS = {
    *("seed", "noise_seed", "steps", "cfg", "denoise", "guidance", "sampler_name", "scheduler", "batch_size"),
    *("width", "height", "length", "fps", "frame_rate", "duration", "resolution", "aspect_ratio", "megapixels"),
    *("strength", "strength_model", "strength_clip", "scale_by", "filename_prefix"),
}
OUTPUT_PREFIXES = ("Save", "Preview")
LONGEST = 80


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    command: str
    file: Path
    object_info: Path | None
    models: Path | None


@dataclass(frozen=True)
class Loaded:
    """A workflow in API format, and what its UI format says beyond that: model file → "folder, link"."""

    workflow: Workflow
    origins: Mapping[str, str] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 failed with a reason, 2 wrong usage, 130 interrupted."""
    options = parse_arguments(arguments)
    try:
        object_info = None if options.object_info is None else read_object_info(options.object_info)
        if options.command == "check" and object_info is None:
            object_info = asyncio.run(ask_comfyui(Settings.from_environ()))
        loaded = load(options.file, object_info)
    except ComfyUIModelError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.command == "check":
        problems = find_problems(loaded.workflow, object_info or {}, options.models)
        print("\n".join(problem.text for problem in problems) or "No problem found.")
        return 1 if problems else 0
    if options.command == "convert":
        print(json.dumps(loaded.workflow.prompt(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(describe(loaded, object_info)))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> Options:
    """Read the command line; argparse itself explains what is wrong with it and exits with 2."""
    parser = argparse.ArgumentParser(prog="scripts/workflow", description="Look at a workflow before it runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="check|convert|describe")
    for name, text in (
        ("check", "print every problem of a workflow; the exit code is 0 if there is none"),
        ("convert", "print the API format of a workflow in UI format, as ComfyUI's own frontend would export it"),
        ("describe", "list nodes, models needed, inputs you may want to change, and what is saved"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", type=typed_path, metavar="FILE", help="a workflow in UI or API format")
        command.add_argument(
            "--object-info",
            type=typed_path,
            metavar="FILE",
            help="a saved answer of ComfyUI's /object_info, plain or .gz; without it ours is started and asked",
        )
        if name == "check":
            command.add_argument(
                "--models", type=typed_path, metavar="FOLDER", help="a models folder whose weights count as there too"
            )
    parsed = parser.parse_args(arguments)
    return Options(parsed.command, parsed.file, parsed.object_info, getattr(parsed, "models", None))


def read_object_info(path: Path) -> Mapping[str, Any]:
    """A saved /object_info, plain or packed with gzip. Raises RequestError if it is neither."""
    try:
        content = path.read_bytes()
        value = json.loads(gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} cannot be read as a saved /object_info: {error}.") from error
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise RequestError(f"{path} is not an /object_info: save one with `curl URL_OF_COMFYUI/object_info`.")
    return value


def load(path: Path, object_info: Mapping[str, Any] | None) -> Loaded:
    """The workflow in a file, converted if it is in UI format. Raises ComfyUIModelError with the reason."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as a workflow: {error}.") from error
    value = read_json(text)
    if not is_ui_format(value):
        return Loaded(workflow_of(value))
    known = asyncio.run(ask_comfyui(Settings.from_environ())) if object_info is None else object_info
    prompt = convert(value, known)
    if not prompt:
        raise WorkflowError(f"{path} has nothing to run: every node of it is a note, muted or bypassed.")
    return Loaded(workflow_of(prompt), dict(_origins(value)))


def find_problems(workflow: Workflow, object_info: Mapping[str, Any], models: Path | None) -> list[NodeProblem]:
    """All problems, but for weights that are no name in the server's lists: the folder `models` has them, or a link."""
    classes = NodeClasses(object_info)

    def is_there(found: NodeProblem) -> bool:
        if found.kind != "value_not_in_list" or found.input_name is None:
            return False
        value = workflow.nodes[found.node_id].inputs.get(found.input_name)
        spec = classes.input(found.class_type, found.input_name)
        return _comes_by_link(value, spec) or _lies_in(value, models)

    return [found for found in check(workflow, classes) if not is_there(found)]


def _comes_by_link(value: object, spec: InputSpec | None) -> bool:
    """Whether a prediction would fetch the file: a link where files of weights are listed, or nothing is yet."""
    choices = (spec.choices if spec else None) or ()
    return is_link(value) and (not choices or any(choice.lower().endswith(WEIGHT_SUFFIXES) for choice in choices))


def _lies_in(value: object, models: Path | None) -> bool:
    if models is None or not models.is_dir() or not isinstance(value, str):
        return False
    return any(folder.is_dir() and (folder / value).is_file() for folder in models.iterdir())


async def ask_comfyui(settings: Settings) -> Mapping[str, Any]:
    """The /object_info of our own ComfyUI, started for it and stopped again. Raises as Engine.client does."""
    print("Starting ComfyUI to ask for its node classes (--object-info FILE does without).", file=sys.stderr)
    engine = Engine(settings, sink=lambda _line: None)
    try:
        return await engine.object_info(fresh=False)
    finally:
        await engine.stop()


def describe(loaded: Loaded, object_info: Mapping[str, Any] | None) -> list[str]:
    """The lines of `describe`."""
    nodes = list(loaded.workflow.nodes.values())
    models = [line for node in nodes for line in _models(node, loaded.origins)]
    inputs = [line for node in nodes for line in _changeable(node)]
    outputs = [f"  {_name(node)}{_prefix(node)}" for node in nodes if _is_output(node, object_info)]
    lines = [f"{len(nodes)} nodes:", *(f"  {_name(node)}" for node in nodes)]
    lines += ["", "Models needed:", *(models or ["  none that is named by a file"])]
    lines += ["", "Inputs you may want to change:", *(inputs or ["  none found"])]
    return [*lines, "", "Outputs:", *(outputs or ["  none: the workflow saves and shows nothing"])]


def _name(node: Node) -> str:
    return f"{node.id} {node.class_type}" + (f" ({node.title})" if node.title != node.class_type else "")


def _values(node: Node) -> Iterator[tuple[str, str | float | bool]]:
    for name, value in node.inputs.items():
        if isinstance(value, str | int | float):
            yield name, value


def _models(node: Node, origins: Mapping[str, str]) -> Iterator[str]:
    for name, value in _values(node):
        by_link = name.endswith("_name") and is_link(value)
        if isinstance(value, str) and (by_link or value.lower().endswith(WEIGHT_SUFFIXES)):
            origin = origins.get(value.replace("\\", "/").rsplit("/", 1)[-1])
            yield f"  {value}  ← {node.id}.{name} of {node.class_type}" + (f"\n    {origin}" if origin else "")


def _changeable(node: Node) -> Iterator[str]:
    for name, value in _values(node):
        short = name.rsplit(".", 1)[-1]
        is_text = isinstance(value, str) and short in PROMPT_INPUTS | FILE_INPUTS
        if not value and short in FILE_INPUTS:
            continue
        if is_text or short in CHANGED_INPUTS or (short == "value" and not isinstance(value, str)):
            shown = json.dumps(value, ensure_ascii=False)
            shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"
            yield f"  {node.id}.{name} = {shown}  ({node.title})"


def _is_output(node: Node, object_info: Mapping[str, Any] | None) -> bool:
    """As ComfyUI says it; where it was not asked, by the names of its own classes."""
    entry = object_info.get(node.class_type) if object_info is not None else None
    if entry is not None:
        return bool(entry.get("output_node"))
    return node.class_type.startswith(OUTPUT_PREFIXES)


def _prefix(node: Node) -> str:
    prefix = node.inputs.get("filename_prefix")
    return f"  → {prefix}…" if isinstance(prefix, str) else ""


def _origins(value: object) -> Iterator[tuple[str, str]]:
    """Model file → folder and link, as ComfyUI's templates note them in the properties of their nodes."""
    if isinstance(value, list):
        for item in value:
            yield from _origins(item)
    elif isinstance(value, Mapping):
        properties = value.get("properties")
        models = properties.get("models") if isinstance(properties, Mapping) else None
        for model in models if isinstance(models, list) else ():
            if isinstance(model, Mapping) and isinstance(model.get("name"), str):
                known = [model.get("directory"), model.get("url")]
                yield model["name"], " ".join(part for part in known if isinstance(part, str))
        yield from _origins(value.get("nodes"))
        definitions = value.get("definitions")
        if isinstance(definitions, Mapping):
            yield from _origins(definitions.get("subgraphs"))


if __name__ == "__main__":
    sys.exit(main())
