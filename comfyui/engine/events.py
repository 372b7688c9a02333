"""What ComfyUI says on its websocket, as types.

The messages are those of ComfyUI 0.30.0: server.py and execution.py (`send_sync`), comfy_execution/progress.py, and
protocol.py for the binary ones. `parse_event` is pure; a message this module does not know is Unknown, not an error:
custom nodes send their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PREVIEW_IMAGE = 1
"""protocol.py BinaryEventTypes.PREVIEW_IMAGE: 4 bytes type, 4 bytes image format, then the image."""


@dataclass(frozen=True)
class Event:
    """Any message; `prompt_id` is the prompt it speaks of, None where it does not say."""

    prompt_id: str | None


@dataclass(frozen=True)
class ExecutionStart(Event):
    """ComfyUI took the prompt from its queue."""


@dataclass(frozen=True)
class ExecutionCached(Event):
    """These nodes need no work: their results of an earlier prompt still hold."""

    node_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Executing(Event):
    """This node runs now; None: ComfyUI is done with the prompt, and its history is complete."""

    node_id: str | None = None


@dataclass(frozen=True)
class Progress(Event):
    """Inside a node: `value` of `maximum` steps."""

    node_id: str | None = None
    value: float = 0
    maximum: float = 0


@dataclass(frozen=True)
class Executed(Event):
    """An output node is done; `output` is what it reports, by kind ("images", "audio", "text", …)."""

    node_id: str | None = None
    output: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecutionSuccess(Event):
    """Every node is done. History is written after this: wait for Executing(node_id=None)."""


@dataclass(frozen=True)
class ExecutionFailed(Event):
    """A node raised an exception."""

    node_id: str = ""
    class_type: str = ""
    exception_type: str = ""
    exception_message: str = ""
    traceback: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExecutionInterrupted(Event):
    """The prompt was stopped on request."""


@dataclass(frozen=True)
class Preview(Event):
    """A picture of the work so far: `image` is a JPEG or PNG file."""

    image: bytes = b""


@dataclass(frozen=True)
class Unknown(Event):
    """A message of another type, kept by its name."""

    kind: str = ""


def parse_event(message: str | bytes) -> Event:
    """One websocket message, text or binary, as an Event. Never raises: what makes no sense is Unknown."""
    if isinstance(message, bytes):
        if len(message) > 8 and int.from_bytes(message[:4], "big") == PREVIEW_IMAGE:
            return Preview(prompt_id=None, image=message[8:])
        return Unknown(prompt_id=None, kind="binary")
    try:
        decoded = json.loads(message)
        kind, data = decoded["type"], decoded.get("data") or {}
        return parse_message(str(kind), data)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Unknown(prompt_id=None, kind="malformed")


def parse_message(kind: str, data: Mapping[str, Any]) -> Event:
    """A message by its type and data, as the websocket and a history entry's `status.messages` both carry them.

    Raises KeyError, TypeError, ValueError, OverflowError or AttributeError for data that is not what its type promises.
    """
    prompt_id = _text_or_none(data.get("prompt_id"))
    node_id = _text_or_none(data.get("node"))
    match kind:
        case "execution_start":
            return ExecutionStart(prompt_id)
        case "execution_cached":
            return ExecutionCached(prompt_id, tuple(str(node) for node in data.get("nodes") or ()))
        case "executing":
            return Executing(prompt_id, node_id)
        case "progress":
            return Progress(prompt_id, node_id, float(data["value"]), float(data["max"]))
        case "executed":
            output = data.get("output")
            return Executed(prompt_id, node_id, output if isinstance(output, dict) else {})
        case "execution_success":
            return ExecutionSuccess(prompt_id)
        case "execution_interrupted":
            return ExecutionInterrupted(prompt_id)
        case "execution_error":
            return ExecutionFailed(
                prompt_id,
                node_id=str(data.get("node_id", "")),
                class_type=str(data.get("node_type", "")),
                exception_type=str(data.get("exception_type", "")),
                exception_message=str(data.get("exception_message", "")).strip(),
                traceback=tuple(str(line) for line in data.get("traceback") or ()),
            )
        case _:
            return Unknown(prompt_id, kind)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
