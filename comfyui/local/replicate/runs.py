"""From words of a command line to the inputs of a run, and the run to its end: what train, predict and ship share."""

from __future__ import annotations

import base64
import mimetypes
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui.errors import RequestError
from comfyui.local.paths import typed_path
from comfyui.local.replicate.api import Api, Run, Version, split_name
from comfyui.local.replicate.follow import RunView, follow
from comfyui.local.replicate.training_inputs import Links, check_some
from comfyui.local.replicate.workflow_inputs import PreparedWorkflow, prepare_workflow, zip_files

Upload = Callable[[Path], str]
MAX_LOCAL_BYTES = 70_000_000
"""The largest file for a server of one's own: Cog takes requests of up to 100 MiB, and base64 adds a third."""


@dataclass(frozen=True)
class Base:
    """A version that can be run or trained: owner/name, and what the version takes."""

    name: str
    version: Version

    @property
    def reference(self) -> str:
        """The version as owner/name:id."""
        return f"{self.name}:{self.version.id}"


def find_base(api: Api, text: str) -> Base:
    """The version that owner/name:id names, or the newest of owner/name.

    Raises RequestError where the model is not there or has no version, ServiceError.
    """
    owner, name, version_id = split_name(text)
    if version_id is None:
        model = api.model(owner, name)
        if model is None:
            raise RequestError(
                f"There is no model {owner}/{name} that this token can see. Check the name, or make it: "
                f"scripts/replicate create {owner}/{name}."
            )
        if model.latest_version is None:
            raise RequestError(
                f"{owner}/{name} has no version yet. Push this project to it: scripts/replicate push {owner}/{name}; "
                "or name another model that has one with --base."
            )
        version_id = model.latest_version
    return Base(f"{owner}/{name}", api.version(owner, name, version_id))


def training_inputs(links: Links, more: Mapping[str, Any], secrets: Mapping[str, str | None]) -> dict[str, Any]:
    """All inputs of a training, with the tokens that were given. Raises TrainingInputError where nothing is to do."""
    check_some({**links.lists, **more})
    return {**links.lists, **more, **{name: token for name, token in secrets.items() if token is not None}}


def prediction_inputs(
    workflow: PreparedWorkflow, more: Mapping[str, Any], input_file: str, upload: Upload
) -> tuple[dict[str, Any], list[str]]:
    """All inputs of a prediction, with its files uploaded, and notes for the person. Raises RequestError."""
    inputs: dict[str, Any] = {"workflow_json": workflow.text, **more}
    notices = list(workflow.notices)
    if workflow.seeds_set and "randomise_seeds" not in inputs:
        inputs["randomise_seeds"] = False
        notices.append("A seed is set by hand, so randomise_seeds is false.")
    if workflow.files and input_file:
        raise RequestError(
            "Files come with @FILE or with --input-file, not with both; write --input-file's as @FILE too."
        )
    if workflow.files:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "inputs.zip"
            zip_files(workflow.files, bundle)
            inputs["input_file"] = upload(bundle)
    elif input_file:
        inputs["input_file"] = input_file if "://" in input_file else upload(need_file(typed_path(input_file)))
    return inputs, notices


def read_workflow(path: Path, overrides: Sequence[str]) -> PreparedWorkflow:
    """The workflow in a file with its overrides. Raises RequestError, WorkflowError among them."""
    try:
        text = need_file(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as a workflow: {error}.") from error
    return prepare_workflow(text, overrides, typed_path("."))


def need_file(path: Path) -> Path:
    """The path, if there is a file. Raises RequestError."""
    if not path.is_file():
        raise RequestError(f"There is no file {path}.")
    return path


def as_data_uri(path: Path) -> str:
    """A file as the URI in which Cog's server takes one that has no link (RFC 2397).

    Raises RequestError for a file that is larger than fits into a request.
    """
    size = path.stat().st_size
    if size > MAX_LOCAL_BYTES:
        raise RequestError(
            f"{path} has {size} bytes, and a server of your own takes up to {MAX_LOCAL_BYTES} in a request. Put it "
            "where it has a link, and give the link as the input instead."
        )
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def stay(api: Api, run: Run, view: RunView) -> Run:
    """Follow a run on Replicate to its end, well or not. Raises ServiceError."""
    return follow(run, lambda run_id: api.get(run.kind, run_id), view, first_wait_s=api.poll_interval_s)
