"""Subgraphs: ids, promoted widgets, nesting, modes; legacy promotions and legacy group nodes."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui.errors import WorkflowError
from tests.workflow.convert_parts import (
    Json,
    converted,
    definition,
    inputs,
    io,
    link,
    node,
    out,
    picture,
    save,
    slot,
    workflow,
)

MUTED, BYPASSED = 2, 4
STEPS_SLOT = slot("steps", "INT", 1, widget=True)


def sampler(node_id: int = 5, *slots: Json, **more: Any) -> Json:
    return node(node_id, "Sampler", [5, "fixed", 12, 6.5, "heun"], inputs=list(slots), **more)


def promoted(name: str = "S", node_id: int = 5) -> Json:
    """A definition that promotes the steps of its sampler."""
    return definition(
        name, [sampler(node_id, STEPS_SLOT)], [link(1, -10, 0, node_id, 0, "INT")], inputs=[io("steps", "INT", 1)]
    )


def mixer(**more: Any) -> Json:
    """A definition that takes a picture and gives one."""
    inner = node(5, "Mix", [1.0], inputs=[slot("image", "IMAGE", 1)], outputs=[out("MASK"), out("IMAGE", 2)]) | more
    return definition(
        "S",
        [inner],
        [link(1, -10, 0, 5, 0, "IMAGE"), link(2, 5, 1, -20, 0, "IMAGE")],
        inputs=[io("image", "IMAGE", 1)],
        outputs=[io("image", "IMAGE", 2)],
    )


def around(host: Json, *subgraphs: Json) -> Json:
    """Picture 1 → subgraph node 2 → save 3."""
    host = node(2, "S", [], inputs=[slot("image", "IMAGE", 1)], outputs=[out("IMAGE", 2)]) | host
    return workflow([picture(1, 1), host, save(3, 2)], [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]], *subgraphs)


def test_inner_nodes_are_named_by_their_path_and_linked_through_both_sides() -> None:
    prompt = converted(around({}, mixer()))
    assert list(prompt) == ["1", "3", "2:5"]
    assert prompt["2:5"]["inputs"] == {"amount": 1.0, "image": ["1", 0]}
    assert prompt["3"]["inputs"]["images"] == ["2:5", 1]


def test_the_hosts_value_wins_over_the_inner_one() -> None:
    assert inputs(workflow([node(1, "S", [31])], [], promoted()), "1:5")["steps"] == 31


@pytest.mark.parametrize("values", [None, []])
def test_without_a_value_on_the_host_the_inner_one_counts(values: Any) -> None:
    assert inputs(workflow([node(1, "S", values)], [], promoted()), "1:5")["steps"] == 12


def test_a_link_into_the_host_wins_over_both() -> None:
    ui = workflow(
        [
            node(1, "Values", outputs=[out("INT", 1)]),
            node(2, "S", [31], inputs=[slot("steps", "INT", 1, widget=True)]),
        ],
        [[1, 1, 0, 2, 0, "INT"]],
        promoted(),
    )
    assert inputs(ui, "2:5")["steps"] == ["1", 0]


def test_a_primitive_that_is_linked_to_the_host_is_ignored() -> None:
    ui = workflow(
        [
            node(1, "PrimitiveNode", [77, "fixed"], outputs=[out("INT", 1)]),
            node(2, "S", [31], inputs=[slot("steps", "INT", 1, widget=True)]),
        ],
        [[1, 1, 0, 2, 0, "INT"]],
        promoted(),
    )
    assert inputs(ui, "2:5")["steps"] == 12


def test_a_promoted_text_is_sent_raw() -> None:
    inner = node(5, "Text", ["inner"], inputs=[slot("text", "STRING", 1, widget=True)])
    sub = definition("S", [inner], [link(1, -10, 0, 5, 0)], inputs=[io("text", "STRING", 1)])
    assert inputs(workflow([node(1, "S", ["{a|b} // c"])], [], sub), "1:5")["text"] == "{a|b} // c"


def test_a_promoted_text_of_several_lines_may_be_null_unlike_the_inner_one() -> None:
    inner = node(5, "Text", ["inner"], inputs=[slot("text", "STRING", 1, widget=True)])
    sub = definition("S", [inner], [link(1, -10, 0, 5, 0)], inputs=[io("text", "STRING", 1)])
    assert inputs(workflow([node(1, "S", [None])], [], sub), "1:5")["text"] is None


def test_a_promoted_list_value_is_wrapped() -> None:
    inner = node(5, "Odd", inputs=[slot("colors", "COLORS", 1, widget=True)])
    sub = definition("S", [inner], [link(1, -10, 0, 5, 0)], inputs=[io("colors", "COLORS", 1)])
    assert inputs(workflow([node(1, "S", [["#1"]])], [], sub), "1:5")["colors"] == {"__value__": ["#1"]}


def test_one_input_may_feed_several_inner_nodes_and_shows_the_first() -> None:
    sub = definition(
        "S",
        [sampler(5, STEPS_SLOT), node(6, "Forced", [3], inputs=[slot("count", "INT", 2, widget=True)])],
        [link(1, -10, 0, 5, 0), link(2, -10, 0, 6, 1)],
        inputs=[io("steps", "INT", 1, 2)],
    )
    prompt = converted(workflow([node(1, "S", [])], [], sub))
    assert (prompt["1:5"]["inputs"]["steps"], prompt["1:6"]["inputs"]["count"]) == (12, 12)


def test_two_nodes_of_one_definition_have_values_of_their_own() -> None:
    prompt = converted(workflow([node(1, "S", [31]), node(2, "S", [32])], [], promoted()))
    assert (prompt["1:5"]["inputs"]["steps"], prompt["2:5"]["inputs"]["steps"]) == (31, 32)


def test_an_input_that_nothing_feeds_leaves_the_key_out() -> None:
    ui = around({"inputs": [slot("image", "IMAGE")]}, mixer())
    assert inputs(ui, "2:5") == {"amount": 1.0}


def nested(**host: Any) -> Json:
    """Subgraph node 2 holds subgraph node 8, whose sampler 5 has its steps promoted through both."""
    outer = definition(
        "Outer",
        [node(8, "S", [31], inputs=[slot("steps", "INT", 1, widget=True)], **host)],
        [link(1, -10, 0, 8, 0)],
        inputs=[io("steps", "INT", 1)],
    )
    return workflow([node(2, "Outer", [44])], [], outer, promoted())


def test_nested_subgraphs_pass_values_inwards() -> None:
    assert {key: entry["inputs"]["steps"] for key, entry in converted(nested()).items()} == {"2:8:5": 44}


@pytest.mark.parametrize("mode", [MUTED, BYPASSED])
def test_inside_a_nested_subgraph_that_does_not_run_nodes_are_sent_all_the_same(mode: int) -> None:
    assert list(converted(nested(mode=mode))) == ["2:8:5"]


def test_definitions_may_stand_inside_definitions() -> None:
    ui = nested()
    outer, inner = ui["definitions"]["subgraphs"]
    ui["definitions"]["subgraphs"] = [outer | {"definitions": {"subgraphs": [inner]}}]
    assert list(converted(ui)) == ["2:8:5"]


def test_inside_a_muted_subgraph_of_the_workflow_nothing_runs() -> None:
    prompt = converted(around({"mode": MUTED}, mixer()))
    assert list(prompt) == ["1", "3"]
    assert prompt["3"]["inputs"] == {"filename_prefix": "out"}


def test_a_bypassed_subgraph_is_passed_by_type() -> None:
    prompt = converted(around({"mode": BYPASSED}, mixer()))
    assert list(prompt) == ["1", "3"]
    assert prompt["3"]["inputs"]["images"] == ["1", 0]


@pytest.mark.parametrize(("mode", "images"), [(MUTED, None), (BYPASSED, ["1", 0])])
def test_inner_nodes_have_modes_too(mode: int, images: Any) -> None:
    prompt = converted(around({}, mixer(mode=mode)))
    assert list(prompt) == ["1", "3"]
    assert prompt["3"]["inputs"].get("images") == images


def test_primitives_and_reroutes_work_inside() -> None:
    sub = definition(
        "S",
        [
            node(6, "PrimitiveNode", [21, "fixed"], outputs=[out("INT", 1)]),
            node(7, "Reroute", inputs=[slot("", "*", 2)], outputs=[out("*", 3)]),
            sampler(5, STEPS_SLOT, slot("model", "MODEL", 3)),
        ],
        [link(1, 6, 0, 5, 5), link(2, -10, 0, 7, 0), link(3, 7, 0, 5, 0)],
        inputs=[io("model", "MODEL", 2)],
    )
    ui = workflow(
        [node(1, "Loader", outputs=[out("MODEL", 1)]), node(2, "S", inputs=[slot("model", "MODEL", 1)])],
        [[1, 1, 0, 2, 0, "MODEL"]],
        sub,
    )
    given = inputs(ui, "2:5")
    assert (given["steps"], given["model"]) == (21, ["1", 0])


def test_inner_ids_that_are_taken_become_the_next_free_ones() -> None:
    sub = definition(
        "S",
        [picture(1, 1), save(2, 1), node(40, "Empty")],
        [link(1, 1, 0, 2, 0, "IMAGE")],
    )
    other = definition("T", [node(40, "Empty")], [])
    prompt = converted(workflow([node(1, "S"), node(2, "T")], [], sub, other))
    assert sorted(prompt) == ["1:3", "1:4", "1:40", "2:41"]
    assert prompt["1:4"]["inputs"]["images"] == ["1:3", 0]


def legacy(entries: Any, values: Any = None, *more: Json) -> Json:
    """A host that promotes by proxyWidgets; its sampler's widgets are not linked."""
    sub = definition("S", [sampler(5), node(6, "Text", ["inner"])], [])
    host = node(1, "S", values, properties={"proxyWidgets": entries})
    return workflow([host, *more], [], sub)


def test_legacy_promotions_carry_the_hosts_values_by_their_own_order() -> None:
    ui = legacy([["6", "text"], ["5", "steps"], ["5", "control_after_generate"]], ["outer", 44, "fixed"])
    prompt = converted(ui)
    assert prompt["1:5"]["inputs"]["steps"] == 44
    assert prompt["1:6"]["inputs"]["text"] == "outer"


def test_legacy_promotions_without_values_change_nothing() -> None:
    prompt = converted(legacy([["5", "steps"], ["6", "text"]], []))
    assert prompt["1:5"]["inputs"]["steps"] == 12
    assert prompt["1:6"]["inputs"]["text"] == "inner"


def test_a_legacy_promotion_of_an_input_that_is_linked_already_takes_its_place_among_the_entries() -> None:
    host = node(1, "S", ["ignored", 44], properties={"proxyWidgets": [["9", "gone"], ["5", "steps"]]})
    assert inputs(workflow([host], [], promoted()), "1:5")["steps"] == 44


def test_each_host_has_its_own_legacy_values() -> None:
    host = node(2, "S", [55], properties={"proxyWidgets": [["5", "steps"]]})
    prompt = converted(legacy([["5", "steps"]], [44], host))
    assert (prompt["1:5"]["inputs"]["steps"], prompt["2:5"]["inputs"]["steps"]) == (44, 55)


def test_a_third_part_of_a_legacy_promotion_tells_inner_nodes_apart() -> None:
    inner = definition(
        "S",
        [sampler(5, STEPS_SLOT), sampler(6, slot("steps", "INT", 2, widget=True))],
        [link(1, -10, 0, 5, 0), link(2, -10, 1, 6, 0)],
        inputs=[io("steps", "INT", 1), io("steps_1", "INT", 2)],
    )
    outer = definition("Outer", [node(8, "S", [31, 32])], [])
    host = node(2, "Outer", [44], properties={"proxyWidgets": [["8", "steps", "6"]]})
    prompt = converted(workflow([host], [], outer, inner))
    assert [prompt[f"2:8:{node_id}"]["inputs"]["steps"] for node_id in (5, 6)] == [31, 44]


def test_a_widget_that_is_promoted_twice_belongs_to_the_later_promotion() -> None:
    ui = legacy([["5", "steps"], ["5", "steps"]], [44, 55])
    assert inputs(ui, "1:5")["steps"] == 55


def test_a_promoted_primitive_whose_targets_do_not_fit_stays() -> None:
    sub = definition(
        "S",
        [node(6, "PrimitiveNode", [21, "fixed"], outputs=[out("FLOAT", 1)]), sampler(5, STEPS_SLOT)],
        [link(1, 6, 0, 5, 4, "INT")],
    )
    host = node(1, "S", [44], properties={"proxyWidgets": [["6", "value"]]})
    assert inputs(workflow([host], [], sub), "1:5")["steps"] == 21


@pytest.mark.parametrize("entries", [[[5, "steps"]], [["5"]], "no JSON", [["5", "$$preview"]], [["7", "steps"]], 5])
def test_legacy_promotions_that_say_nothing_are_ignored(entries: Any) -> None:
    assert inputs(legacy(entries, [44]), "1:5")["steps"] == 12


def test_legacy_promotions_may_be_written_as_json() -> None:
    assert inputs(legacy('[["5", "steps"]]', [44]), "1:5")["steps"] == 44


def test_a_legacy_promotion_may_name_the_path_in_front_of_the_widget() -> None:
    assert inputs(legacy([["5", "5: steps"]], [44]), "1:5")["steps"] == 44


def test_a_legacy_promotion_may_lead_through_a_nested_subgraph() -> None:
    outer = definition("Outer", [node(8, "S", [31])], [])
    host = node(2, "Outer", [44], properties={"proxyWidgets": [["8", "steps"]]})
    assert inputs(workflow([host], [], outer, promoted()), "2:8:5")["steps"] == 44


def test_a_promoted_primitive_is_replaced_by_an_input() -> None:
    sub = definition(
        "S",
        [node(6, "PrimitiveNode", [21, "fixed"], outputs=[out("INT", 1)]), sampler(5, STEPS_SLOT)],
        [link(1, 6, 0, 5, 4, "INT")],
    )
    host = node(1, "S", [44], properties={"proxyWidgets": [["6", "value"]]})
    assert inputs(workflow([host], [], sub), "1:5")["steps"] == 44
    other = node(2, "S", [55], properties={"proxyWidgets": [["6", "value"]]})
    prompt = converted(workflow([host, other], [], sub))
    assert (prompt["1:5"]["inputs"]["steps"], prompt["2:5"]["inputs"]["steps"]) == (44, 55)


def test_values_that_an_earlier_load_could_not_place_are_put_back() -> None:
    kept = {"originalEntry": ["-1", "steps"], "reason": "missingSourceNode", "hostValue": 66, "attemptedAtVersion": 1}
    host = node(1, "S", [31], properties={"proxyWidgetErrorQuarantine": [kept, 5, {"originalEntry": ["x"]}]})
    assert inputs(workflow([host], [], promoted()), "1:5")["steps"] == 66


def test_ids_in_legacy_promotions_follow_the_new_ids() -> None:
    sub = definition("S", [sampler(1), node(2, "Text", ["inner"])], [])
    host = node(1, "S", [44], properties={"proxyWidgets": [["1", "steps"]]})
    assert inputs(workflow([host], [], sub), "1:2")["steps"] == 44


@pytest.mark.parametrize("depth", [1, 2])
def test_a_subgraph_in_itself_is_refused(depth: int) -> None:
    subgraphs = [definition(str(number), [node(9 + number, str((number + 1) % depth))], []) for number in range(depth)]
    subgraphs = [entry | {"id": f"S{entry['id']}"} for entry in subgraphs]
    for entry in subgraphs:
        entry["nodes"][0]["type"] = f"S{entry['nodes'][0]['type']}"
    with pytest.raises(WorkflowError, match="contains itself"):
        converted(workflow([node(1, "S0")], [], *subgraphs))


def test_subgraphs_that_multiply_without_end_are_refused() -> None:
    subgraphs = [
        definition(f"S{level}", [node(100 * level + place, f"S{level + 1}") for place in range(10)], [])
        for level in range(1, 12)
    ]
    with pytest.raises(WorkflowError, match="more than 100000 nodes"):
        converted(workflow([node(1, "S1")], [], *subgraphs))


def group_workflow(type_name: str = "workflow>pair", **more: Any) -> Json:
    """Two samplers' worth of text in one legacy group node, as old frontends saved it."""
    text = {"type": "Text", "inputs": [{"name": "clip", "type": "CLIP", "link": None}], "widgets_values": ["old"]}
    mix = {
        "type": "Mix",
        "title": "Mixer",
        "inputs": [{"name": "image", "type": "IMAGE"}, {"name": "mask", "type": "MASK"}],
        "widgets_values": [1.0],
    }
    load = {"type": "LoadImage", "widgets_values": ["cat.png", "image"]}
    group = {
        "nodes": [text, load, mix, text],
        "links": [[1, 0, 2, 0, 7, "IMAGE"]],
        "external": [[0, 0, "CONDITIONING"]],
    }
    instance = node(
        20,
        type_name,
        ["first", "dog.png", "image", 2.0, "second"],
        inputs=[slot("clip", "CLIP", 1), slot("mask", "MASK", 2), slot("Text clip", "CLIP", 3)],
        outputs=[out("CONDITIONING"), out("MASK"), out("MASK"), out("IMAGE", 4), out("CONDITIONING")],
    )
    return workflow(
        [
            node(1, "Loader", outputs=[out("MODEL"), out("CLIP", 1, 3)]),
            picture(2) | {"outputs": [out("IMAGE"), out("MASK", 2)]},
            instance | more,
            save(4, 4),
        ],
        [[1, 1, 1, 20, 0, "CLIP"], [2, 2, 1, 20, 1, "MASK"], [3, 1, 1, 20, 2, "CLIP"], [4, 20, 3, 4, 0, "IMAGE"]],
        extra={"groupNodes": {"pair": group}},
    )


@pytest.mark.parametrize("type_name", ["workflow>pair", "workflow/pair"])
def test_a_legacy_group_node_becomes_a_subgraph_with_new_ids(type_name: str) -> None:
    prompt = converted(group_workflow(type_name))
    given = {key: entry["inputs"] for key, entry in prompt.items() if ":" in key}
    assert given == {
        "25:21": {"text": "first", "clip": ["1", 1]},
        "25:22": {"image": "dog.png"},
        "25:23": {"amount": 2.0, "image": ["25:22", 0], "mask": ["2", 1]},
        "25:24": {"text": "second", "clip": ["1", 1]},
    }
    assert prompt["25:23"]["_meta"]["title"] == "Mixer"
    assert prompt["4"]["inputs"]["images"] == ["25:23", 1]


def test_a_group_node_with_an_unknown_class_inside_is_refused() -> None:
    ui = group_workflow()
    ui["extra"]["groupNodes"]["pair"]["nodes"][0]["type"] = "Custom"
    with pytest.raises(WorkflowError, match=r"20 'workflow>pair' \(workflow>pair\)"):
        converted(ui)


@pytest.mark.parametrize("mode", [MUTED, BYPASSED])
def test_a_group_node_that_does_not_run_stays_so(mode: int) -> None:
    assert [key for key in converted(group_workflow(mode=mode)) if ":" in key] == []


def test_in_a_group_node_widgets_that_were_made_inputs_come_last() -> None:
    converted_text = {"type": "Text", "widgets_values": ["old"], "inputs": [slot("text", "STRING", widget=True)]}
    group = {"nodes": [converted_text, {"type": "Ordered"}], "links": [], "external": []}
    instance = node(9, "workflow>g", [4, "a", False, "words"])
    prompt = converted(workflow([instance], extra={"groupNodes": {"g": group}}))
    assert {key: entry["inputs"] for key, entry in prompt.items()} == {
        "12:10": {"text": "words"},
        "12:11": {"a": "a", "b": 4, "c": False},
    }
