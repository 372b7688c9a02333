"""ComfyUI's messages as types. The texts are what ComfyUI 0.30.0 sent over its websocket for a small run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.engine.client import HistoryEntry, parse_history_entry
from comfyui.engine.events import (
    Event,
    Executed,
    Executing,
    ExecutionCached,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionStart,
    ExecutionSuccess,
    Preview,
    Progress,
    Unknown,
    parse_event,
)
from tests.workflow.answers import CUT_CHECKPOINT_FAILED, FAILED_HISTORY, PROMPT_ID, SUCCESS_HISTORY

ID = "2693388c-a6f2-4b18-a79a-c7e0a536df6c"
IMAGES = {"images": [{"filename": "tiny_sd3_00001_.png", "subfolder": "", "type": "output"}]}
FAILURE = ExecutionFailed(
    PROMPT_ID,
    node_id="4",
    class_type="CheckpointLoaderSimple",
    exception_type="safetensors._safetensors_rust.SafetensorError",
    exception_message="Error while deserializing header: incomplete metadata, file not fully covered",
    traceback=('  File "/src/ComfyUI/comfy/utils.py", line 149, in load_torch_file\n    raise e\n',),
)


@pytest.mark.parametrize(
    ("kind", "data", "event"),
    [
        ("status", {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "abc"}, Unknown(None, "status")),
        ("execution_start", {"prompt_id": ID, "timestamp": 1795158776352}, ExecutionStart(ID)),
        ("execution_cached", {"nodes": [], "prompt_id": ID, "timestamp": 1}, ExecutionCached(ID, ())),
        ("execution_cached", {"nodes": ["4", "5"], "prompt_id": ID}, ExecutionCached(ID, ("4", "5"))),
        ("executing", {"node": "1", "display_node": "1", "prompt_id": ID}, Executing(ID, "1")),
        ("executing", {"node": None, "prompt_id": ID}, Executing(ID, None)),
        ("progress", {"value": 3, "max": 4, "prompt_id": ID, "node": "6"}, Progress(ID, "6", 3.0, 4.0)),
        ("progress_state", {"prompt_id": ID, "nodes": {}}, Unknown(ID, "progress_state")),
        ("executed", {"node": "8", "display_node": "8", "output": IMAGES, "prompt_id": ID}, Executed(ID, "8", IMAGES)),
        ("executed", {"node": "8", "output": None, "prompt_id": ID}, Executed(ID, "8", {})),
        ("execution_success", {"prompt_id": ID, "timestamp": 1795158776971}, ExecutionSuccess(ID)),
        ("execution_interrupted", {"prompt_id": ID, "node_id": "6", "executed": []}, ExecutionInterrupted(ID)),
        ("execution_error", CUT_CHECKPOINT_FAILED, FAILURE),
        ("crystools.monitor", {"cpu_utilization": 3.1}, Unknown(None, "crystools.monitor")),
        ("feature_flags", None, Unknown(None, "feature_flags")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_text_message_is_an_event_of_its_type(kind: str, data: Any, event: Event) -> None:
    assert parse_event(json.dumps({"type": kind, "data": data})) == event


def test_a_preview_is_the_image_behind_its_eight_bytes() -> None:
    jpeg = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01"
    assert parse_event(b"\x00\x00\x00\x01\x00\x00\x00\x01" + jpeg) == Preview(None, jpeg)


@pytest.mark.parametrize(
    "message", [b"", b"\x00\x00\x00\x01", b"\x00\x00\x00\x01\x00\x00\x00\x01", b"\x00\x00\x00\x04" * 4]
)
def test_another_binary_message_is_unknown(message: bytes) -> None:
    assert parse_event(message) == Unknown(None, "binary")


@pytest.mark.parametrize(
    "message",
    [
        "",
        "hello",
        "[]",
        "7",
        "null",
        '"executing"',
        "{}",
        '{"data": {}}',
        '{"type": "executing", "data": [1]}',
        '{"type": "progress", "data": {"value": "half", "max": 4}}',
        '{"type": "progress", "data": {"value": 1}}',
        '{"type": "progress", "data": {"max": 4, "value": ' + "9" * 400 + "}}",
        '{"type": "execution_cached", "data": {"nodes": 7}}',
        '{"type": "execution_error", "data": {"traceback": 7}}',
        '{"type": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
    ids=lambda value: value[:40],
)
def test_a_text_that_makes_no_sense_is_unknown_and_no_error(message: str) -> None:
    assert parse_event(message) == Unknown(None, "malformed")


KINDS = st.sampled_from(
    ["execution_start", "execution_cached", "executing", "progress", "executed", "execution_error", "status"]
)
KEYS = st.sampled_from(["prompt_id", "node", "nodes", "value", "max", "output", "traceback", "exception_message"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.fixed_dictionaries({"type": KINDS | VALUES, "data": st.dictionaries(KEYS, VALUES) | VALUES})


@given(st.binary() | st.text() | VALUES.map(json.dumps) | MESSAGES.map(json.dumps))
def test_no_message_raises(message: str | bytes) -> None:
    event = parse_event(message)
    assert isinstance(event, Event)
    assert event.prompt_id is None or isinstance(event.prompt_id, str)


def test_a_finished_prompt_is_remembered_with_its_outputs() -> None:
    assert parse_history_entry(SUCCESS_HISTORY) == HistoryEntry(SUCCESS_HISTORY["outputs"], True, None)


def test_a_failed_prompt_is_remembered_with_what_failed() -> None:
    assert parse_history_entry(FAILED_HISTORY) == HistoryEntry({}, False, FAILURE)


def test_an_interrupted_prompt_is_remembered_as_such() -> None:
    interrupted = ["execution_interrupted", {"prompt_id": ID, "node_id": "6", "node_type": "KSampler", "executed": []}]
    entry = {"outputs": {}, "status": {"status_str": "error", "completed": False, "messages": [interrupted]}}
    assert parse_history_entry(entry) == HistoryEntry({}, False, ExecutionInterrupted(ID))


@pytest.mark.parametrize("entry", [{}, {"outputs": None, "status": None}, {"status": {"messages": None}}])
def test_an_entry_without_a_status_is_no_success(entry: dict[str, Any]) -> None:
    assert parse_history_entry(entry) == HistoryEntry({}, False, None)
