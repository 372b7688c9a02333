"""What people send as workflow_json, and the exact words they get back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import WorkflowError
from comfyui.workflow.parse import MAX_DEPTH, Workflow, parse_workflow
from tests.workflow.answers import WORKFLOW

EXPORT = "In ComfyUI choose Workflow → Export (API), and send the content of that file."
AS_IT_IS = "Send the exported file as it is; a program should make the text with json.dumps()."


def nested(levels: int) -> str:
    return '{"1": {"class_type": "A", "inputs": {"x": ' + "[" * levels + "]" * levels + "}}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"workflow_json is empty; it takes a workflow. {EXPORT}"),
        (" \n\t", f"workflow_json is empty; it takes a workflow. {EXPORT}"),
        (
            '{"1": {"class_type": "A",\n  "inputs": {"text": "a cat",}}}',
            "workflow_json is not valid JSON: Expecting property name enclosed in double quotes at line 2, column 30, "
            f'near \'": {{"text": "a cat",}}}}}}\'. {AS_IT_IS}',
        ),
        (
            "{'1': {}}",
            "workflow_json is not valid JSON: Expecting property name enclosed in double quotes at line 1, column 2, "
            f"near \"{{'1': {{}}}}\". {AS_IT_IS}",
        ),
        (
            '{"last_node_id": 9, "nodes": [{"id": 3, "type": "KSampler", "pos": [1, 2]}], "links": []}',
            "workflow_json is in the UI format (it has `nodes` with positions and widgets), which ComfyUI's API does "
            f"not run. {EXPORT} Or convert it: scripts/workflow convert FILE.",
        ),
        (
            '{"3": {"inputs": {}}}',
            f"workflow_json: node '3' has no class_type, so this is not the API format. {EXPORT}",
        ),
        (
            '{"1": {"class_type": "A"}, "3": {"type": "B"}}',
            f"workflow_json: node '3' has no class_type, so this is not the API format. {EXPORT}",
        ),
        (
            '{"1": {"class_type": "A"}, "save": {"inputs": {}}}',
            f"workflow_json: node 'save' has no class_type, so this is not the API format. {EXPORT}",
        ),
        (
            '{\\"3\\": cat}',
            f"workflow_json is not valid JSON: Expecting value at line 1, column 7, near '{{\"3\": cat}}'. {AS_IT_IS}",
        ),
        ('{"3": 7}', f"workflow_json: node '3' has no class_type, so this is not the API format. {EXPORT}"),
        (
            '{"3": {"class_type": "KSampler", "inputs": [1]}}',
            "workflow_json: node '3' (KSampler) has inputs that are a JSON array.",
        ),
        ("{}", f"workflow_json has no nodes in it. {EXPORT}"),
        ('{"prompt": {}}', f"workflow_json has no nodes in it. {EXPORT}"),
        ("[1, 2]", f"workflow_json holds a JSON array, but a workflow is an object of nodes. {EXPORT}"),
        ("true", f"workflow_json holds a JSON boolean, but a workflow is an object of nodes. {EXPORT}"),
        ("null", f"workflow_json holds a JSON null, but a workflow is an object of nodes. {EXPORT}"),
        ('"\\"twice\\""', f"workflow_json holds a JSON string, but a workflow is an object of nodes. {EXPORT}"),
        ("[" * 100_000, "workflow_json is nested too deeply to be a workflow."),
        (nested(MAX_DEPTH + 1), "workflow_json is nested too deeply to be a workflow."),
        (
            '{"1": {"class_type": "A", "inputs": {"seed": ' + "9" * 5000 + "}}}",
            "workflow_json holds a number of thousands of digits, which no input takes.",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_workflow_gets_a_sentence_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        parse_workflow(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "wrap",
    [
        json.dumps,
        lambda workflow: json.dumps(json.dumps(workflow)),
        lambda workflow: json.dumps({"prompt": workflow, "client_id": "abc"}),
        lambda workflow: json.dumps(json.dumps({"prompt": workflow})),
        lambda workflow: json.dumps(json.dumps(workflow, indent=2)).strip('"') + "\n",
        lambda workflow: json.dumps(
            {"client_id": "abc", "extra_data": {"extra_pnginfo": {}}, **workflow, "version": 1}
        ),
    ],
    ids=["as exported", "escaped once too often", "body of POST /prompt", "both", "escaped, no quotes", "extra keys"],
)
def test_a_workflow_is_understood_in_the_wrappings_people_send(wrap: Any) -> None:
    workflow = parse_workflow(wrap(WORKFLOW))
    assert workflow.prompt() == WORKFLOW
    assert list(workflow.nodes) == ["4", "5", "6", "3", "8", "9"]


def test_a_node_may_be_called_prompt() -> None:
    assert list(parse_workflow('{"prompt": {"class_type": "A", "inputs": {}}}').nodes) == ["prompt"]


def test_a_node_without_title_is_called_by_its_class_and_may_lack_inputs() -> None:
    node = parse_workflow('{"1": {"class_type": "SaveImage", "_meta": {"title": ""}}}').nodes["1"]
    assert (node.title, node.inputs) == ("SaveImage", {})


def test_a_workflow_as_deep_as_allowed_can_be_copied() -> None:
    text = nested(MAX_DEPTH - 4)
    assert json.dumps(parse_workflow(text).prompt()["1"]["inputs"]) == json.dumps(json.loads(text)["1"]["inputs"])


def test_changing_the_prompt_that_is_sent_does_not_change_the_workflow() -> None:
    workflow = parse_workflow(json.dumps(WORKFLOW))
    sent = workflow.prompt()
    sent["3"]["inputs"]["model"][0] = "77"
    assert workflow.nodes["3"].inputs["model"] == ["4", 0]


@pytest.mark.parametrize(
    ("node_id", "position"), [("4", 0), ("3", 3), ("3.0.1", 3), ("9", 5), ("77", 6), ("77.3", 6), ("", 6)]
)
def test_a_nodes_position_is_that_in_the_text_and_of_the_node_that_made_it(node_id: str, position: int) -> None:
    assert parse_workflow(json.dumps(WORKFLOW)).position(node_id) == position


def test_a_node_that_is_not_there_has_no_title() -> None:
    assert parse_workflow(json.dumps(WORKFLOW)).title("77") == ""


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["class_type", "inputs", "nodes"]), inner)
    ),
)


@given(st.text() | JSON_VALUES.map(json.dumps) | st.dictionaries(st.text(), JSON_VALUES).map(json.dumps))
def test_any_text_is_a_workflow_or_a_workflow_error(text: str) -> None:
    try:
        workflow = parse_workflow(text)
    except WorkflowError:
        return
    assert isinstance(workflow, Workflow)
    assert workflow.nodes
    json.dumps(workflow.prompt())
