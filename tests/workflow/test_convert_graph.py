"""Where an input comes from: links, reroutes, primitives, muted and bypassed nodes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui.errors import WorkflowError
from comfyui.workflow.convert import convert, is_ui_format
from tests.workflow.convert_parts import (
    CFG,
    OBJECT_INFO,
    SIZE,
    STEPS,
    Json,
    class_info,
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
IMAGE = [1, 1, 0, 2, 0, "IMAGE"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"nodes": []}, True),
        ({"nodes": {"class_type": "X"}}, False),
        ({"1": {"class_type": "X", "inputs": {}}}, False),
        ([], False),
        ("nodes", False),
        (None, False),
    ],
)
def test_the_ui_format_is_known_by_its_list_of_nodes(value: Any, expected: bool) -> None:
    assert is_ui_format(value) is expected


def test_a_whole_workflow() -> None:
    ui = workflow(
        [
            node(1, "Loader", ["b.ckpt"], outputs=[out("MODEL", 1), out("CLIP", 2), out("VAE", 3)]),
            node(
                2, "Text", ["a cat"], inputs=[slot("clip", "CLIP", 2)], outputs=[out("CONDITIONING", 4)], title="Prompt"
            ),
            node(3, "Empty", [64, 32, 1], outputs=[out("LATENT", 5)]),
            node(
                4,
                "Sampler",
                [7, "randomize", 4, 1.5, "heun"],
                inputs=[slot("model", "MODEL", 1), slot("positive", "CONDITIONING", 4), slot("latent", "LATENT", 5)],
                outputs=[out("LATENT", 6)],
            ),
            node(5, "Decode", inputs=[slot("samples", "LATENT", 6), slot("vae", "VAE", 3)], outputs=[out("IMAGE", 7)]),
            save(6, 7, "cat"),
            node(7, "Note", ["read me"]),
            node(8, "MarkdownNote", ["# read me"]),
        ],
        [
            [1, 1, 0, 4, 0, "MODEL"],
            [2, 1, 1, 2, 0, "CLIP"],
            [3, 1, 2, 5, 1, "VAE"],
            [4, 2, 0, 4, 1, "CONDITIONING"],
            [5, 3, 0, 4, 2, "LATENT"],
            [6, 4, 0, 5, 0, "LATENT"],
            [7, 5, 0, 6, 0, "IMAGE"],
        ],
        groups=[{"title": "All", "bounding": [0, 0, 1, 1]}],
    )
    assert converted(ui) == {
        "1": {"class_type": "Loader", "inputs": {"ckpt_name": "b.ckpt"}, "_meta": {"title": "Load"}},
        "2": {"class_type": "Text", "inputs": {"text": "a cat", "clip": ["1", 1]}, "_meta": {"title": "Prompt"}},
        "3": {"class_type": "Empty", "inputs": {"width": 64, "height": 32, "batch": 1}, "_meta": {"title": "Empty"}},
        "4": {
            "class_type": "Sampler",
            "inputs": {
                "seed": 7,
                "steps": 4,
                "cfg": 1.5,
                "sampler_name": "heun",
                "model": ["1", 0],
                "positive": ["2", 0],
                "latent": ["3", 0],
            },
            "_meta": {"title": "Sampler"},
        },
        "5": {"class_type": "Decode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}, "_meta": {"title": "Decode"}},
        "6": {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "cat", "images": ["5", 0]},
            "_meta": {"title": "SaveImage"},
        },
    }


def test_nodes_come_by_number_then_those_of_subgraphs_in_execution_order() -> None:
    sub = definition("S", [node(20, "Empty"), node(7, "Empty")], [])
    ui = workflow(
        [save(11, 1), node(9, "Note"), node(3, "S"), picture(12, 1), node(2, "S")], [[1, 12, 0, 11, 0, "IMAGE"]], sub
    )
    assert list(converted(ui)) == ["11", "12", "3:20", "3:7", "2:20", "2:7"]


def test_only_notes_are_an_empty_prompt() -> None:
    assert converted(workflow([node(1, "Note", ["x"])])) == {}
    assert converted(workflow([])) == {}


def test_the_other_version_of_the_file_has_links_as_objects() -> None:
    ui = workflow([picture(1, 1), save(2, 1)], version=1, state={}) | {"links": [link(1, 1, 0, 2, 0, "IMAGE")]}
    assert inputs(ui, 2)["images"] == ["1", 0]


def test_ids_may_be_text() -> None:
    ui = workflow([picture(1, 1) | {"id": "a"}, save(2, 1)], [[1, "a", 0, 2, 0, "IMAGE"]])
    assert inputs(ui, 2)["images"] == ["a", 0]


@pytest.mark.parametrize("mode", [0, 1, 3])
def test_other_modes_run(mode: int) -> None:
    assert inputs(workflow([picture(1, 1, mode=mode), save(2, 1)], [IMAGE]), 2)["images"] == ["1", 0]


def reroute(node_id: int, link_id: int | None, *links: int, **more: Any) -> Json:
    return node(node_id, "Reroute", inputs=[slot("", "*", link_id)], outputs=[out("IMAGE", *links)], **more)


def test_reroutes_are_passed_through_in_chains_and_fans() -> None:
    ui = workflow(
        [picture(1, 1), reroute(2, 1, 2), reroute(3, 2, 3, 4), save(4, 3), save(5, 4)],
        [
            [1, 1, 0, 2, 0, "IMAGE"],
            [2, 2, 0, 3, 0, "IMAGE"],
            [3, 3, 0, 4, 0, "IMAGE"],
            [4, 3, 0, 5, 0, "IMAGE"],
        ],
    )
    prompt = converted(ui)
    assert list(prompt) == ["1", "4", "5"]
    assert prompt["4"]["inputs"]["images"] == prompt["5"]["inputs"]["images"] == ["1", 0]


def test_a_reroute_that_leads_nowhere_leaves_the_key_out() -> None:
    ui = workflow([reroute(1, None, 1), save(2, 1)], [IMAGE])
    assert inputs(ui, 2) == {"filename_prefix": "out"}


def test_native_reroutes_are_only_drawn() -> None:
    ui = workflow([picture(1, 1), save(2, 1)], [IMAGE], extra={"reroutes": [{"id": 1, "linkIds": [1]}]})
    assert inputs(ui, 2)["images"] == ["1", 0]


def test_muted_nodes_and_the_keys_that_need_them_disappear() -> None:
    ui = workflow([picture(1, 1, mode=MUTED), reroute(2, 1, 2), save(3, 2)], [IMAGE, [2, 2, 0, 3, 0, "IMAGE"]])
    assert converted(ui) == {
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "out"}, "_meta": {"title": "SaveImage"}}
    }


def bypass(*slots: Json, outputs: list[Json], to: Json, kind: str) -> Any:
    """What a node behind a bypassed Mix gets; node 1 gives IMAGE and MASK, links 1 and 2."""
    ui = workflow(
        [
            node(1, "LoadImage", ["cat.png", "image"], outputs=[out("IMAGE", 1), out("MASK", 2)]),
            node(2, "Mix", [1.0], mode=BYPASSED, inputs=list(slots), outputs=outputs),
            to,
        ],
        [[1, 1, 0, 2, 0, "IMAGE"], [2, 1, 1, 2, 2, "MASK"], [3, 2, 0 if kind == "MASK" else 1, 3, 0, kind]],
    )
    prompt = converted(ui)
    assert "2" not in prompt
    return prompt["3"]["inputs"]


MIXED = [out("MASK"), out("IMAGE", 3)]


def test_a_bypassed_output_is_replaced_by_the_first_input_of_exactly_its_type() -> None:
    given = bypass(slot("image", "IMAGE", 1), slot("mask", "MASK", 2), outputs=MIXED, to=save(3, 3), kind="IMAGE")
    assert given["images"] == ["1", 0]


def test_a_bypassed_output_is_replaced_by_the_input_of_its_own_place_if_that_fits() -> None:
    ui = workflow(
        [
            picture(1, 1),
            picture(5, 2),
            node(
                2,
                "Picky",
                mode=BYPASSED,
                inputs=[slot("either", "MASK,IMAGE", 1), slot("extra", "IMAGE", 2)],
                outputs=[out("IMAGE", 3)],
            ),
            save(3, 3),
        ],
        [IMAGE, [2, 5, 0, 2, 2, "IMAGE"], [3, 2, 0, 3, 0, "IMAGE"]],
    )
    assert inputs(ui, 3)["images"] == ["1", 0]


def test_a_bypassed_output_falls_back_to_the_first_input_that_may_be_linked() -> None:
    info = OBJECT_INFO | {
        "Wide": class_info(["IMAGE"], required={"n": STEPS, "first": ["LATENT"], "second": ["IMAGE,MASK"]})
    }
    ui = workflow(
        [
            picture(1, 1),
            node(2, "Wide", mode=BYPASSED, inputs=[slot("second", "IMAGE,MASK", 1)], outputs=[out("IMAGE", 3)]),
            save(3, 3),
        ],
        [IMAGE, [3, 2, 0, 3, 0, "IMAGE"]],
    )
    assert convert(ui, info)["3"]["inputs"]["images"] == ["1", 0]


def test_a_bypassed_output_without_a_fitting_input_leaves_the_key_out() -> None:
    ui = workflow(
        [
            node(1, "Empty", mode=BYPASSED, outputs=[out("LATENT", 1)]),
            node(2, "Decode", inputs=[slot("samples", "LATENT", 1)]),
        ],
        [[1, 1, 0, 2, 0, "LATENT"]],
    )
    assert inputs(ui, 2) == {}


def test_an_unlinked_input_behind_a_bypass_leaves_the_targets_own_value() -> None:
    ui = workflow(
        [
            node(1, "Values", mode=BYPASSED, inputs=[slot("more", "INT")], outputs=[out("INT", 1)]),
            node(2, "Sampler", [5, "fixed", 12], inputs=[slot("steps", "INT", 1, widget=True)]),
        ],
        [[1, 1, 0, 2, 0, "INT"]],
    )
    assert inputs(ui, 2)["steps"] == 12


def test_bypasses_are_followed_one_behind_the_other() -> None:
    pass_on = {"mode": BYPASSED, "outputs": [out("MASK"), out("IMAGE", 2)]}
    ui = workflow(
        [
            picture(1, 1),
            node(2, "Mix", inputs=[slot("image", "IMAGE", 1)], **pass_on),
            node(3, "Mix", inputs=[slot("image", "IMAGE", 2)], mode=BYPASSED, outputs=[out("MASK"), out("IMAGE", 3)]),
            save(4, 3),
        ],
        [IMAGE, [2, 2, 1, 3, 0, "IMAGE"], [3, 3, 1, 4, 0, "IMAGE"]],
    )
    assert inputs(ui, 4)["images"] == ["1", 0]


def test_a_bypassed_switch_has_the_types_of_what_is_linked() -> None:
    ui = workflow(
        [
            picture(1, 1),
            node(
                2,
                "Switch",
                [True],
                mode=BYPASSED,
                inputs=[slot("left", "*"), slot("right", "*", 1)],
                outputs=[out("*", 2)],
            ),
            save(3, 2),
        ],
        [[1, 1, 0, 2, 2, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    )
    assert inputs(ui, 3) == {"filename_prefix": "out"}
    ui["nodes"][1]["inputs"] = [slot("left", "*", 1), slot("right", "*")]
    assert inputs(ui, 3)["images"] == ["1", 0]


def test_inputs_of_one_type_take_it_from_each_other_before_a_bypass_is_followed() -> None:
    match = ["COMFY_MATCHTYPE_V3", {"template": {"template_id": "t", "allowed_types": "*"}}]
    info = OBJECT_INFO | {"Three": class_info(["IMAGE"], required={"a": match, "b": match, "picture": ["IMAGE"]})}
    ui = workflow(
        [
            picture(1, 1),
            node(4, "Empty", outputs=[out("LATENT", 4)]),
            node(
                2,
                "Three",
                mode=BYPASSED,
                inputs=[slot("b", "*", 4), slot("picture", "IMAGE", 1)],
                outputs=[out("IMAGE", 3)],
            ),
            save(3, 3),
        ],
        [[1, 1, 0, 2, 2, "IMAGE"], [4, 4, 0, 2, 1, "LATENT"], [3, 2, 0, 3, 0, "IMAGE"]],
    )
    # `a` stands in the place of the output, but only latents fit it as long as `b` has one.
    assert convert(ui, info)["3"]["inputs"]["images"] == ["1", 0]


def test_an_exact_type_goes_before_one_that_only_fits() -> None:
    info = OBJECT_INFO | {
        "Wide": class_info(["IMAGE"], required={"first": ["LATENT"], "second": ["IMAGE,MASK"], "third": ["IMAGE"]})
    }
    slots = [slot("second", "IMAGE,MASK", 1), slot("third", "IMAGE", 2)]
    ui = workflow(
        [
            picture(1, 1),
            picture(5, 2),
            node(2, "Wide", mode=BYPASSED, inputs=slots, outputs=[out("IMAGE", 3)]),
            save(3, 3),
        ],
        [IMAGE, [2, 5, 0, 2, 2, "IMAGE"], [3, 2, 0, 3, 0, "IMAGE"]],
    )
    assert convert(ui, info)["3"]["inputs"]["images"] == ["5", 0]


def primitive(node_id: int, values: Any, *links: int, kind: str = "INT", **more: Any) -> Json:
    return node(node_id, "PrimitiveNode", values, outputs=[out(kind, *links)], **more)


def fed(value: Any, name: str, kind: str, **more: Any) -> Any:
    """What a Sampler gets from a PrimitiveNode that is linked to one of its widgets."""
    ui = workflow(
        [
            primitive(1, None if value is None else [value, "fixed"], 1, kind=kind, **more),
            node(2, "Sampler", [5, "fixed", 12, 6.5, "heun"], inputs=[slot(name, kind, 1, widget=True)]),
            node(3, "Empty", [640, 8, 1]),
        ],
        [[1, 1, 0, 2, 0, kind]],
    )
    return inputs(ui, 2)[name]


@pytest.mark.parametrize(
    ("value", "name", "kind", "expected"),
    [
        (30, "steps", "INT", 30),
        (30.6, "steps", "INT", 31),
        (30.5, "steps", "INT", 31),
        (99999, "steps", "INT", 10000),
        (-3, "steps", "INT", 1),
        (2**64 - 1, "seed", "INT", 2**64 - 1),
        (4.25, "cfg", "FLOAT", 4.3),
        (4.24, "cfg", "FLOAT", 4.2),
        (400, "cfg", "FLOAT", 100),
        ("euler", "sampler_name", "COMBO", "euler"),
        (None, "steps", "INT", 12),
    ],
)
def test_a_primitive_overwrites_what_it_is_linked_to_and_snaps(value: Any, name: str, kind: str, expected: Any) -> None:
    assert fed(value, name, kind) == expected


def test_a_muted_primitive_still_applies() -> None:
    assert fed(30, "steps", "INT", mode=MUTED) == 30


def test_a_primitive_replaces_names_when_it_is_told_to() -> None:
    told = {"properties": {"Run widget replace on values": True}}
    assert fed("%Empty.width%", "sampler_name", "COMBO", **told) == "640"
    assert fed("%Empty.width%", "sampler_name", "COMBO") == "%Empty.width%"


def test_a_primitive_with_several_targets_keeps_within_the_limits_of_all() -> None:
    info = OBJECT_INFO | {
        "Narrow": class_info(required={"n": ["INT", {"min": 0, "max": 100, "step": 6}]}),
        "Other": class_info(required={"n": ["INT", {"min": 10, "max": 50, "step": 4}]}),
    }
    targets = [
        node(number, name, [1], inputs=[slot("n", "INT", link_id, widget=True)])
        for number, name, link_id in ((2, "Narrow", 1), (3, "Other", 2))
    ]
    links = [[1, 1, 0, 2, 0, "INT"], [2, 1, 0, 3, 0, "INT"]]
    prompt = convert(workflow([primitive(1, [70, "fixed"], 1, 2), *targets], links), info)
    # In common: 10 to 50 by 12, counted from 10, so 46; then each target rounds to its own step.
    assert (prompt["2"]["inputs"]["n"], prompt["3"]["inputs"]["n"]) == (48, 46)


def test_a_primitive_with_several_targets_takes_the_coarsest_step() -> None:
    info = {
        name: class_info(required={"n": ["FLOAT", {"step": step}]}) for name, step in (("Fine", 0.01), ("Coarse", 0.1))
    }
    ui = workflow(
        [
            primitive(1, [0.34, "fixed"], 1, 2, kind="FLOAT"),
            node(2, "Fine", [1.0], inputs=[slot("n", "FLOAT", 1, widget=True)]),
            node(3, "Coarse", [1.0], inputs=[slot("n", "FLOAT", 2, widget=True)]),
        ],
        [[1, 1, 0, 2, 0, "FLOAT"], [2, 1, 0, 3, 0, "FLOAT"]],
    )
    assert [entry["inputs"]["n"] for entry in convert(ui, info).values()] == [0.3, 0.3]


@pytest.mark.parametrize(
    ("step", "value", "expected"),
    [(SIZE, 99, 96), (SIZE, 100, 104), (SIZE, 101, 104), (CFG, 1.05, 1.1), (["FLOAT", {"step": 1.0}], 1.4, 1.4)],
)
def test_values_snap_to_the_step_of_the_target(step: Any, value: Any, expected: Any) -> None:
    info = {"One": class_info(required={"n": step})}
    kind = step[0]
    ui = workflow(
        [primitive(1, [value, "fixed"], 1, kind=kind), node(2, "One", [1], inputs=[slot("n", kind, 1, widget=True)])],
        [[1, 1, 0, 2, 0, kind]],
    )
    assert convert(ui, info)["2"]["inputs"]["n"] == expected


def two_targets(one: Json, other: Json, value: Any, kind: str = "INT") -> list[Any]:
    """What two nodes get from a PrimitiveNode; `one` and `other` are the options of their inputs."""
    info = {"A": class_info(required={"n": [kind, one]}), "B": class_info(required={"n": [kind, other]})}
    ui = workflow(
        [
            primitive(1, [value, "fixed"], 1, 2, kind=kind),
            node(2, "A", [1], inputs=[slot("n", kind, 1, widget=True)]),
            node(3, "B", [1], inputs=[slot("n", kind, 2, widget=True)]),
        ],
        [[1, 1, 0, 2, 0, kind], [2, 1, 0, 3, 0, kind]],
    )
    return [entry["inputs"]["n"] for entry in convert(ui, info).values()]


@pytest.mark.parametrize(
    ("one", "other"), [({"max": 10}, {"min": 20}), ({"max": 10}, {"max": 15, "display": "slider"})]
)
def test_targets_that_have_nothing_in_common_do_not_limit_each_other(one: Json, other: Json) -> None:
    assert two_targets(one, other, 12) == [10, 10]


def test_a_primitive_of_text_is_not_fitted() -> None:
    assert two_targets({}, {}, "words", "STRING") == ["words", "words"]


def test_a_primitive_linked_to_what_is_no_widget_does_nothing() -> None:
    ui = workflow(
        [primitive(1, [5, "fixed"], 1, 2), picture(2), node(3, "Mix", inputs=[slot("image", "IMAGE", 1)])],
        [[1, 1, 0, 3, 0, "IMAGE"], [2, 1, 0, 9, 0, "IMAGE"]],
    )
    assert inputs(ui, 3) == {"amount": 8.0}


def test_samplers_of_old_files_lose_a_prefix() -> None:
    info = {"KSampler": class_info(required={"sampler_name": [["euler"], {}]})}
    assert convert(workflow([node(1, "KSampler", ["sample_euler"])]), info)["1"]["inputs"] == {"sampler_name": "euler"}


def test_an_unlinked_primitive_does_nothing() -> None:
    assert converted(workflow([primitive(1, [5, "fixed"])])) == {}


def test_a_primitive_behind_a_reroute_does_not_reach_the_widget() -> None:
    ui = workflow(
        [
            primitive(1, [30, "fixed"], 1),
            reroute(2, 1, 2),
            node(3, "Sampler", [5, "fixed", 12], inputs=[slot("steps", "INT", 2, widget=True)]),
        ],
        [[1, 1, 0, 2, 0, "INT"], [2, 2, 0, 3, 0, "INT"]],
    )
    assert inputs(ui, 3)["steps"] == 12


def refusal(ui: Json) -> WorkflowError:
    with pytest.raises(WorkflowError) as caught:
        converted(ui)
    return caught.value


def test_an_unknown_class_is_refused_with_every_node_of_it_named() -> None:
    sub = definition("S", [node(7, "Custom", title="Inner")], [])
    error = refusal(workflow([node(1, "Custom", title="Mine"), node(2, "S"), node(3, "Other")], [], sub))
    assert "no class for nodes 1 'Mine' (Custom), 2:7 'Inner' (Custom), 3 'Other' (Other), so" in str(error)
    assert {(problem.node_id, problem.title, problem.class_type) for problem in error.problems} == {
        ("1", "Mine", "Custom"),
        ("3", "Other", "Other"),
        ("2:7", "Inner", "Custom"),
    }


@pytest.mark.parametrize("mode", [MUTED, BYPASSED])
def test_an_unknown_class_that_does_not_run_is_no_matter(mode: int) -> None:
    unknown = node(2, "Custom", mode=mode, inputs=[slot("x", "IMAGE", 1)], outputs=[out("IMAGE", 2)])
    ui = workflow([picture(1, 1), unknown, save(3, 2)], [IMAGE, [2, 2, 0, 3, 0, "IMAGE"]])
    expected = {"filename_prefix": "out"} | ({"images": ["1", 0]} if mode == BYPASSED else {})
    assert inputs(ui, 3) == expected


BROKEN: dict[str, tuple[Json, str, str]] = {
    "a link that is not there": (workflow([save(2, 9)]), "2", "link 9, which is not in the file"),
    "a node that is not there": (workflow([save(2, 1)], [IMAGE]), "2", "node 1, which is not in the file"),
    "a circle of reroutes": (
        workflow(
            [reroute(1, 2, 1, 3), reroute(2, 1, 2), save(3, 3)], [IMAGE, [2, 2, 0, 1, 0, "*"], [3, 1, 0, 3, 0, "*"]]
        ),
        "1",
        "in a circle",
    ),
    "an output that a bypassed node has not": (
        workflow([picture(1, 1, mode=BYPASSED), save(2, 1)], [[1, 1, 7, 2, 0, "IMAGE"]]),
        "1",
        "no output number 7",
    ),
    "a file name that is no text": (workflow([node(1, "SaveImage", [None])]), "1", "filename_prefix that is not text"),
    "a picture from a camera": (workflow([node(1, "WebcamCapture", title="Me")]), "1", "camera in the browser"),
    "an output that its subgraph has not": (
        workflow([node(1, "S", outputs=[out("IMAGE", 1)]), save(2, 1)], [IMAGE], definition("S", [], [])),
        "1",
        "no output number 0",
    ),
    "an input straight to an output": (
        workflow(
            [node(1, "S", outputs=[out("IMAGE", 1)]), save(2, 1)],
            [IMAGE],
            definition("S", [], [link(1, -10, 0, -20, 0)], inputs=[io("a", "IMAGE", 1)], outputs=[io("b", "IMAGE", 1)]),
        ),
        "1",
        "straight to its output",
    ),
    "an input that its subgraph has not": (
        workflow([node(1, "S")], [], definition("S", [save(5, 1)], [link(1, -10, 3, 5, 0)])),
        "5",
        "input number 3 of its subgraph",
    ),
}


@pytest.mark.parametrize(("ui", "node_id", "text"), BROKEN.values(), ids=list(BROKEN))
def test_what_cannot_be_followed_names_the_node(ui: Json, node_id: str, text: str) -> None:
    error = refusal(ui)
    assert text in str(error)
    assert error.problems[0].node_id == node_id
    assert str(error).startswith(f"Node {node_id} ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nodes": None}, "no list of nodes"),
        ({"nodes": [5]}, "a node should be an object, but is 5"),
        ({"nodes": [{"id": 1}]}, "node 1: type should be text"),
        ({"nodes": [node(1, "Text"), node(1, "Text")]}, "two nodes have the id 1"),
        ({"nodes": [node(1, "Text", "x")]}, "node 1 (Text): widgets_values should be a list"),
        ({"nodes": [node(1, "Text", inputs={})]}, "node 1 (Text): inputs should be a list"),
        ({"nodes": [node(1, "Text", inputs=[slot("a", "*") | {"link": "x"}])]}, "a link should be a whole number"),
        ({"nodes": [node(True, "Text")]}, "a node's id should be a number or text, but is True"),
        ({"links": 7}, "links should be a list"),
        ({"links": [[1, 2]]}, "a link should be [id"),
        ({"definitions": []}, "definitions should be an object"),
        ({"definitions": {"subgraphs": [{"nodes": []}]}}, "a subgraph's id should be text"),
    ],
)
def test_what_has_another_shape_is_refused_with_its_place(change: Json, text: str) -> None:
    error = refusal(workflow([node(1, "Text")]) | change)
    assert text in str(error)
    assert "save" in str(error)


def test_a_shape_is_shown_shortened() -> None:
    assert len(str(refusal(workflow([]) | {"links": "x" * 5000}))) < 250


def test_a_thousand_reroutes_are_refused_not_a_crash() -> None:
    count = 3000
    nodes = [
        picture(1, 1),
        *(reroute(number, number - 1, number) for number in range(2, count)),
        save(count, count - 1),
    ]
    links = [[number, number, 0, number + 1, 0, "IMAGE"] for number in range(1, count)]
    assert "hundreds of levels" in str(refusal(workflow(nodes, links)))
