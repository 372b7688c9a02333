"""Every error of this project, in families by who must act.

    ComfyUIModelError
    ├── RequestError                 the caller: what was sent cannot be done as it is
    │   ├── TrainingInputError       names, lists or URLs given to train()
    │   ├── WorkflowError            the workflow cannot be read, or ComfyUI refuses it
    │   └── InputFileError           input_file cannot be used
    ├── SourceError                  the place a file comes from: server, link, archive
    │   ├── DownloadError            the server did not give the file
    │   ├── WeightsError             what arrived is not the weights that were promised
    │   └── ManifestError            weights_manifest.json cannot be trusted as it is
    ├── StorageError                 the machine: its disk is full, or something is in the way
    ├── ExecutionError               a node failed while ComfyUI ran the workflow
    ├── DeadlineError                something took longer than it was given
    ├── StoppedError                 somebody asked it to end
    └── EngineError                  ours: ComfyUI itself cannot be started, reached or kept alive
        └── EngineDiedError          the ComfyUI process ended

What only scripts/replicate meets (ServiceError, RunError) is in comfyui/local/replicate/failures.py.

A message is one sentence or a few: what failed, what was seen, what was expected, what to do. The same facts are
attributes, so that code never has to read the text. Tokens never get into either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ComfyUIModelError(Exception):
    """Root of every error this project raises on purpose; `str(error)` is fit to be shown to a user."""


class RequestError(ComfyUIModelError):
    """The caller must change what was sent."""


class TrainingInputError(RequestError):
    """The inputs of a training cannot be used: a wrong name, an empty list, a URL that names no file.

    `input_name` is the training input at fault ("loras"), or None where no single one is.
    """

    def __init__(self, message: str, *, input_name: str | None = None) -> None:
        super().__init__(message)
        self.input_name = input_name


@dataclass(frozen=True)
class NodeProblem:
    """One thing wrong with one node of a workflow.

    `node_id`, `title` and `class_type` are as the workflow has them; `input_name` is None where the problem is the
    node itself; `kind` is ComfyUI's own error type ("value_not_in_list") or ours; `text` says it in words.
    """

    node_id: str
    title: str
    class_type: str
    input_name: str | None
    kind: str
    text: str


class WorkflowError(RequestError):
    """The workflow cannot be read, or ComfyUI refuses it; `problems` has one entry for each fault."""

    def __init__(self, message: str, *, problems: Sequence[NodeProblem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class InputFileError(RequestError):
    """input_file cannot be used: its type is unknown, or it is an archive that must not be unpacked."""


class SourceError(ComfyUIModelError):
    """The place a file comes from must be mended: another link, a token, a whole archive."""


class DownloadError(SourceError):
    """The server did not give the file. `url` is shown without its query; `status` is the HTTP status, if any."""

    def __init__(self, message: str, *, url: str, status: int | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.status = status


class WeightsError(SourceError):
    """What arrived is not the weights that were promised.

    `path` is the file's place in the models folder ("loras/a.safetensors"); `expected` and `seen` are what differed.
    """

    def __init__(self, message: str, *, path: str, expected: str | None = None, seen: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.expected = expected
        self.seen = seen


class ManifestError(SourceError):
    """weights_manifest.json cannot be trusted as it is; `entry` names the entry at fault, if it is one of them."""

    def __init__(self, message: str, *, entry: str | None = None) -> None:
        super().__init__(message)
        self.entry = entry


class StorageError(ComfyUIModelError):
    """This machine cannot hold a file: its disk is full or fails, or something else is in the file's place.

    `path` is what was to be written; `expected` and `seen` are what differed.
    """

    def __init__(self, message: str, *, path: str, expected: str | None = None, seen: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.expected = expected
        self.seen = seen


class ExecutionError(ComfyUIModelError):
    """A node failed while ComfyUI ran the workflow. `problem` names it; `traceback` is ComfyUI's, line by line."""

    def __init__(self, message: str, *, problem: NodeProblem, traceback: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problem = problem
        self.traceback = tuple(traceback)


class DeadlineError(ComfyUIModelError):
    """Something took longer than it was given: `limit_s` seconds for `doing`."""

    def __init__(self, doing: str, limit_s: float, *, hint: str = "") -> None:
        super().__init__(f"{doing} took longer than the {limit_s:g} s it was given.{' ' + hint if hint else ''}")
        self.doing = doing
        self.limit_s = limit_s


class StoppedError(ComfyUIModelError):
    """Somebody asked what was under way to end before it was done: a cancel, Ctrl-C."""


class EngineError(ComfyUIModelError):
    """ComfyUI itself cannot be prepared, started or reached; nothing the caller sent is to blame."""


class EngineDiedError(EngineError):
    """The ComfyUI process ended. `returncode` is negative for a signal; `last_lines` is the end of its log.

    `had_prompt` says whether the prompt that was to be run may have reached it, and so may have ended it.
    """

    def __init__(
        self, message: str, *, returncode: int | None, last_lines: Sequence[str], had_prompt: bool = False
    ) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.last_lines = tuple(last_lines)
        self.had_prompt = had_prompt
