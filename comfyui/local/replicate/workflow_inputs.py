"""The inputs of a prediction: a workflow from a file, what the person changes in it by name, and files to send along.

One trap ends here: `workflow_json` is JSON inside JSON. The workflow is read, changed as a value, and written as text
once; the client's own JSON does the rest. Pure but for reading files.
"""

from __future__ import annotations

import difflib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui.errors import RequestError
from comfyui.local.replicate.training_inputs import read_assignment
from comfyui.workflow.changes import SEED_INPUTS
from comfyui.workflow.convert import is_ui_format
from comfyui.workflow.parse import Node, Workflow, read_json, workflow_of

MAX_LISTED = 12


@dataclass(frozen=True)
class PreparedWorkflow:
    """A workflow as it is sent: its JSON text, the files it names, whether its seeds were set by hand, and notes."""

    text: str
    files: Mapping[str, Path] = field(default_factory=dict)
    seeds_set: bool = False
    notices: tuple[str, ...] = ()


def prepare_workflow(text: str, overrides: Sequence[str], base: Path) -> PreparedWorkflow:
    """Read a workflow (API or UI format) and put the overrides into it.

    An override is NODE.INPUT=VALUE: VALUE is JSON, or else text; @FILE (relative to `base`) sends a file along. Raises
    RequestError, WorkflowError among them, that names the nearest right node or input.
    """
    value = read_json(text)
    notices = (_ESCAPED_TWICE,) if _is_escaped_twice(text) else ()
    if is_ui_format(value):
        if overrides:
            raise RequestError(
                f"The workflow is in UI format, whose inputs have no names, so {overrides[0]!r} has no place. Convert "
                "it first: scripts/workflow convert FILE > workflow_api.json."
            )
        return PreparedWorkflow(json.dumps(value), notices=notices)
    workflow = workflow_of(value)
    files: dict[str, Path] = {}
    values: dict[str, dict[str, Any]] = {}
    for override in overrides:
        key, given = read_assignment(override)
        node, name = _place(workflow, key)
        values.setdefault(node.id, {})[name] = _attach(given, base, files) if given.startswith("@") else _value(given)
    changed = workflow.changed(lambda node: values.get(node.id, {}))
    seeds_set = any(name in SEED_INPUTS for names in values.values() for name in names)
    return PreparedWorkflow(json.dumps(changed.prompt()), files, seeds_set, notices)


_ESCAPED_TWICE = (
    "The workflow's JSON was escaped once more than it should be (a JSON text that holds JSON); it is taken as it was "
    "meant. This command escapes workflow_json itself: give it the file that ComfyUI exported."
)


def _is_escaped_twice(text: str) -> bool:
    return isinstance(json.loads(text.removeprefix("\ufeff")), str)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _place(workflow: Workflow, key: str) -> tuple[Node, str]:
    """The node and input that `key` names; ids and names may hold dots themselves."""
    dots = [at for at, char in enumerate(key) if char == "."]
    nodes = [(workflow.nodes[key[:at]], key[at + 1 :]) for at in dots if key[:at] in workflow.nodes]
    for node, name in nodes:
        if name in node.inputs:
            return node, name
    if not nodes:
        raise RequestError(_no_node(workflow, key))
    node, name = nodes[-1]
    known = list(node.inputs)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {node.id}.{near[0]}?" if near else "."
    raise RequestError(
        f"Node {node.id} {node.title!r} ({node.class_type}) has no input {name!r}{hint} Its inputs are: "
        f"{', '.join(known) or 'none'}."
    )


def _no_node(workflow: Workflow, key: str) -> str:
    if "." not in key:
        return f"{key!r} does not name an input; write NODE.INPUT=VALUE, as in 3.seed=5."
    wanted, _, name = key.partition(".")
    having = [node for node in workflow.nodes.values() if name in node.inputs]
    # A title or a class is what people remember; the id is what they must type.
    words = {word.lower(): node for node in workflow.nodes.values() for word in (node.id, node.title, node.class_type)}
    near = difflib.get_close_matches(wanted.lower(), words, n=1, cutoff=0.6)
    meant = words[near[0]] if near else (having[0] if len(having) == 1 else None)
    hint = f"; did you mean {meant.id}.{name} of {meant.title!r} ({meant.class_type})?" if meant else "."
    shown = [f"{node.id} {node.class_type}" for node in (having or list(workflow.nodes.values()))]
    more = f" and {len(shown) - MAX_LISTED} more" if len(shown) > MAX_LISTED else ""
    which = f"Nodes with an input {name!r}" if having else "Its nodes"
    return f"The workflow has no node {wanted!r}{hint} {which}: {', '.join(shown[:MAX_LISTED])}{more}."


def _attach(given: str, base: Path, files: dict[str, Path]) -> str:
    """The name under which a file of this machine is there for the workflow."""
    path = base / Path(given[1:]).expanduser()
    if not path.is_file():
        raise RequestError(f'{given}: there is no file {path}. (A text that begins with @ is written as JSON: "@…".)')
    name, number = path.name, 1
    while files.get(name, path) != path:
        number += 1
        name = f"{path.stem}-{number}{path.suffix}"
    files[name] = path
    return name


def zip_files(files: Mapping[str, Path], out: Path) -> None:
    """Write files, by the names that the workflow has for them, into a zip, the form in which input_file takes many."""
    # A file's time may be one that a zip does not know: before 1980.
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for name, path in files.items():
            archive.write(path, name)


def read_values(assignments: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE inputs of a prediction or training; VALUE is JSON, or else text. Raises RequestError."""
    return {name: _value(value) for name, value in map(read_assignment, assignments)}
