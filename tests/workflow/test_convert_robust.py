"""Whatever is done to a workflow file, it is converted or refused with a WorkflowError; nothing else comes out."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfyui.errors import WorkflowError
from comfyui.workflow.convert import convert
from tests.workflow.convert_parts import (
    OBJECT_INFO,
    Json,
    converted,
    definition,
    io,
    link,
    node,
    out,
    picture,
    save,
    slot,
    workflow,
)

STEPS = slot("steps", "INT", 1, widget=True)


def sound() -> Json:
    """One of everything, so that whatever is damaged matters to something."""
    inner = definition(
        "In",
        [
            node(
                30, "Sampler", [1, "fixed", 3], inputs=[STEPS, slot("latent", "LATENT", 2)], outputs=[out("LATENT", 3)]
            ),
            node(31, "PrimitiveNode", [9, "fixed"], outputs=[out("INT", 4)]),
            node(32, "Empty", [64, 64, 1], inputs=[slot("width", "INT", 4, widget=True)], outputs=[out("LATENT", 2)]),
        ],
        [link(1, -10, 0, 30, 0), link(2, 32, 0, 30, 1), link(3, 30, 0, -20, 0), link(4, 31, 0, 32, 0)],
        inputs=[io("steps", "INT", 1)],
        outputs=[io("latent", "LATENT", 3)],
    )
    outer = definition(
        "Out",
        [node(20, "In", [5], properties={"proxyWidgets": [["30", "cfg"]]}, outputs=[out("LATENT", 1)])],
        [link(1, 20, 0, -20, 0)],
        outputs=[io("latent", "LATENT", 1)],
    )
    group = {"nodes": [{"type": "Text", "widgets_values": ["t"]}, {"type": "Seeded"}], "links": [[0, 0, 1, 0, 1, "X"]]}
    return workflow(
        [
            picture(1, 1, 5),
            node(2, "Mix", [1], mode=4, inputs=[slot("image", "IMAGE", 1)], outputs=[out("MASK"), out("IMAGE", 2)]),
            node(3, "Reroute", inputs=[slot("", "*", 2)], outputs=[out("*", 3)]),
            save(4, 3, "%date:yyyy%%Mine.seed%"),
            node(5, "Out", [7], outputs=[out("LATENT", 4)]),
            node(6, "Decode", inputs=[slot("samples", "LATENT", 4)]),
            node(7, "Resize", ["nested", "b", "{a|b}", 3], inputs=[slot("image", "IMAGE", 5)]),
            node(8, "PrimitiveNode", [3.3, "fixed"], outputs=[out("FLOAT", 6, 7)]),
            node(
                9,
                "Sampler",
                [1, "fixed"],
                title="Mine",
                inputs=[slot("cfg", "FLOAT", 6, widget=True), slot("x", "*", 7)],
            ),
            node(10, "Batch", [], inputs=[slot("images.image0", "IMAGE", 8), slot("images.image1", "IMAGE")]),
            node(11, "Switch", [True], inputs=[slot("left", "*", 9)], outputs=[out("*", 8)]),
            picture(12, 9),
            node(13, "Odd", []),
            node(14, "CustomCombo", ["a", 0, "a", "b", ""]),
            node(15, "workflow>g", ["t", 4, "fixed", 5]),
        ],
        [
            [1, 1, 0, 2, 0, "IMAGE"],
            [2, 2, 1, 3, 0, "IMAGE"],
            [3, 3, 0, 4, 0, "IMAGE"],
            [4, 5, 0, 6, 0, "LATENT"],
            [5, 1, 0, 7, 0, "IMAGE"],
            [6, 8, 0, 9, 0, "FLOAT"],
            [7, 8, 0, 9, 1, "FLOAT"],
            [8, 11, 0, 10, 0, "IMAGE"],
            [9, 12, 0, 11, 0, "IMAGE"],
        ],
        inner,
        outer,
        extra={"groupNodes": {"g": group}},
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


PLACES = places(sound())
SCALARS = [None, True, 0, -1, 2**70, 1e400, -0.5, "", "x", "5", "5.5", "workflow>g", "In", "Reroute", "PrimitiveNode"]
JUNK: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([*SCALARS, [], {}, [[]], [None], {"name": 1}, [1, 2, 3], ["5", "steps"], "{a|{", "%date:%%x.y%"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)


def damage(ui: Json, path: tuple[Any, ...], junk: Any, *, drop: bool) -> None:
    """Change or remove what is at `path`, if an earlier damage has left it there."""
    place: Any = ui
    for key in path[:-1]:
        if not isinstance(place, dict | list) or (isinstance(place, list) and not isinstance(key, int)):
            return
        try:
            place = place[key]
        except (KeyError, IndexError):
            return
    last = path[-1]
    if isinstance(place, dict):
        place.pop(last, None)
        if not drop:
            place[last] = junk
    elif isinstance(place, list) and isinstance(last, int) and last < len(place):
        if drop:
            del place[last]
        else:
            place[last] = junk


def convert_or_refuse(ui: Any) -> None:
    """Raises only for what must not happen."""
    try:
        prompt = convert(ui, OBJECT_INFO)
    except WorkflowError:
        return
    json.dumps(prompt)


def test_the_sound_one_is_converted() -> None:
    prompt = converted(sound())
    # The group holds nodes 33 and 34 and is 35 itself: the first ids that nothing has.
    assert {"5:20:30", "5:20:32", "35:33", "35:34"} <= prompt.keys()


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK, st.booleans()), min_size=1, max_size=4))
def test_damaged_workflows_are_converted_or_refused(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
    ui = sound()
    for path, junk, drop in changes:
        damage(ui, path, copy.deepcopy(junk), drop=drop)
    convert_or_refuse(ui)


@pytest.mark.parametrize("junk", ["dropped", *SCALARS, [], {}, [None], [[1]], {"x": {}}], ids=repr)
def test_every_single_place_may_be_damaged(junk: Any) -> None:
    for path in PLACES:
        ui = sound()
        damage(ui, path, copy.deepcopy(junk), drop=junk == "dropped")
        convert_or_refuse(ui)


@settings(max_examples=200, deadline=None)
@given(JUNK)
@example({"nodes": [{"id": 1, "type": "Text", "widgets_values": {"0": float("nan")}}]})
def test_what_is_no_workflow_at_all_is_refused(value: Any) -> None:
    convert_or_refuse(value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab{}|\\/*\n%.", max_size=30))
def test_any_text_is_sent(text: str) -> None:
    ui = workflow([node(1, "Text", [text]), save(2, None, text)])
    prompt = converted(ui)
    assert isinstance(prompt["1"]["inputs"]["text"], str)
    assert isinstance(prompt["2"]["inputs"]["filename_prefix"], str)


def nested_lists(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_values_may_be_nested_but_not_without_end() -> None:
    assert converted(workflow([node(1, "Odd", [nested_lists(50)])]))["1"]["inputs"]["box"]
    with pytest.raises(WorkflowError, match="hundreds of levels deep"):
        converted(workflow([node(1, "Odd", [nested_lists(100_000)])]))
