"""Which value of the file becomes which input: order, places, defaults, and what widgets add or change."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyui.workflow.convert import convert
from tests.workflow.convert_parts import (
    NOW,
    OBJECT_INFO,
    Json,
    alone,
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


def test_values_go_by_place_in_the_order_of_input_order() -> None:
    assert alone("Ordered", ["text", 3, False]) == {"a": "text", "b": 3, "c": False}


def test_without_input_order_required_come_before_optional_as_they_are_listed() -> None:
    assert alone("Empty", [64, 32, 2]) == {"width": 64, "height": 32, "batch": 2}


def test_control_after_generate_takes_a_place_and_is_not_sent() -> None:
    assert alone("Sampler", [5, "fixed", 12, 6.5, "heun"]) == {
        "seed": 5,
        "steps": 12,
        "cfg": 6.5,
        "sampler_name": "heun",
    }


def test_a_file_from_before_control_after_generate_is_read_by_place_all_the_same() -> None:
    assert alone("Sampler", [5, 12, 6.5, "heun"]) == {"seed": 5, "steps": 6.5, "cfg": "heun", "sampler_name": "euler"}


def test_an_input_named_like_a_seed_has_a_control_without_being_asked() -> None:
    assert alone("Seeded", [9, "randomize", 4]) == {"noise_seed": 9, "tail": 4}


def test_a_seed_keeps_all_its_digits() -> None:
    assert alone("Sampler", [2**64 - 1, "fixed"])["seed"] == 2**64 - 1


@pytest.mark.parametrize("values", [None, []])
def test_no_values_are_the_defaults(values: Any) -> None:
    assert alone("Sampler", values) == {"seed": 0, "steps": 20, "cfg": 8.0, "sampler_name": "euler"}


def test_too_few_values_are_completed_by_the_defaults() -> None:
    assert alone("Sampler", [5, "fixed", 12]) == {"seed": 5, "steps": 12, "cfg": 8.0, "sampler_name": "euler"}


def test_too_many_values_are_left_over() -> None:
    assert alone("Empty", [64, 32, 2, "more"]) == {"width": 64, "height": 32, "batch": 2}


def test_null_takes_the_first_choice_of_a_list_and_else_stays_null() -> None:
    assert alone("Sampler", [5, "fixed", None, None, None]) == {
        "seed": 5,
        "steps": None,
        "cfg": None,
        "sampler_name": "euler",
    }


def test_null_in_a_text_of_several_lines_is_empty() -> None:
    assert alone("Text", [None])["text"] == ""


def test_a_value_that_is_no_choice_is_kept() -> None:
    assert alone("Loader", ["gone.ckpt"]) == {"ckpt_name": "gone.ckpt"}


def test_an_object_instead_of_values_gives_no_keys() -> None:
    assert alone("Empty", {"width": 640}) == {}


def test_an_empty_list_of_choices_gives_no_key() -> None:
    info = {"Loader": {"input": {"required": {"name": [[], {}]}}, "output": []}}
    assert convert(workflow([node(1, "Loader")]), info)["1"]["inputs"] == {}


def test_stored_values_are_neither_rounded_nor_clamped() -> None:
    assert alone("Empty", [13, -5, 1])["width"] == 13
    assert alone("Empty", [13, -5, 1])["height"] == -5


def test_lists_are_wrapped_so_that_they_are_no_links() -> None:
    given = alone("Odd")
    assert given["colors"] == {"__value__": ["#fff"]}
    assert given["many"] == {"__value__": []}
    assert given["compare"] == {"__value__": ["", ""]}


def test_a_curve_of_points_says_that_it_is_one() -> None:
    given = alone("Odd", [{}, 0, 0, 0, 0, [], "#0", [[0, 0], [1, 1]]])
    assert given["curve"] == {"__type__": "CURVE", "__value__": [[0, 0], [1, 1]]}


def test_a_box_takes_five_places_and_sends_one() -> None:
    box = {"x": 9, "y": 9, "width": 9, "height": 9}
    given = alone("Odd", [box, 9, 9, 9, 9, ["#000"]])
    assert given["box"] == box
    assert given["colors"] == {"__value__": ["#000"]}
    assert not {"x", "y", "width", "height"} & given.keys()


def test_a_list_with_control_takes_three_places() -> None:
    values = [{}, 0, 0, 0, 0, [], "#0", {}, {}, "q", "fixed", "", ["p"], 30.5, 8]
    given = alone("Odd", values)
    assert (given["pick"], given["many"], given["both"], given["after"]) == ("q", {"__value__": ["p"]}, 30.5, 8)


def test_defaults_are_copied_out_of_object_info() -> None:
    before = copy.deepcopy(OBJECT_INFO)
    given = alone("Odd")
    given["box"]["x"] = 99
    given["colors"]["__value__"].append("#111")
    assert before == OBJECT_INFO


def test_an_input_that_was_a_widget_once_gives_up_its_value() -> None:
    assert alone("Forced", ["old words", 5]) == {"count": 5}
    assert alone("Forced", [5]) == {"count": 5}


def test_a_linked_widget_sends_the_link_and_keeps_its_place() -> None:
    ui = workflow(
        [
            node(1, "Values", outputs=[out("INT", 1)]),
            node(2, "Sampler", [5, "fixed", 12, 6.5, "heun"], inputs=[slot("steps", "INT", 1, widget=True)]),
        ],
        [[1, 1, 0, 2, 0, "INT"]],
    )
    assert inputs(ui, 2) == {"seed": 5, "steps": ["1", 0], "cfg": 6.5, "sampler_name": "heun"}


def test_a_widget_made_an_input_and_left_alone_sends_its_value() -> None:
    assert alone("Sampler", [5, "fixed", 12], inputs=[slot("steps", "INT", None, widget=True)])["steps"] == 12


def test_an_input_that_the_class_does_not_know_is_sent_if_it_is_linked() -> None:
    ui = workflow(
        [picture(1, 1), node(2, "Empty", inputs=[slot("ghost", "IMAGE", 1), slot("other", "IMAGE")])],
        [[1, 1, 0, 2, 0, "IMAGE"]],
    )
    assert inputs(ui, 2) == {"width": 512, "height": 512, "batch": 1, "ghost": ["1", 0]}


def test_an_unknown_input_that_stands_for_a_missing_widget_is_taken_away() -> None:
    ui = workflow(
        [picture(1, 1), node(2, "Empty", inputs=[slot("ghost", "IMAGE", 1, widget=True)])], [[1, 1, 0, 2, 0, "IMAGE"]]
    )
    assert "ghost" not in inputs(ui, 2)


def test_upload_buttons_and_players_take_no_key() -> None:
    assert alone("LoadImage", ["dog.png", "image"]) == {"image": "dog.png"}
    assert alone("LoadAudio", ["s.mp3", None, ""]) == {"audio": "s.mp3"}


def test_a_list_from_the_server_has_a_refresh_button_that_is_sent() -> None:
    assert alone("LoadImageOutput", ["x.png [output]", False, "refresh", "image"]) == {
        "image": "x.png [output]",
        "refresh": "refresh",
    }


def test_a_promoted_upload_button_is_sent() -> None:
    inner = node(
        2,
        "LoadImage",
        ["cat.png", "image"],
        inputs=[slot("image", "COMBO", 1, widget=True), slot("upload", "IMAGEUPLOAD", 2, widget=True)],
    )
    sub = definition(
        "S",
        [inner],
        [link(1, -10, 0, 2, 0), link(2, -10, 1, 2, 1)],
        inputs=[io("image", "COMBO", 1), io("upload", "IMAGEUPLOAD", 2)],
    )
    assert inputs(workflow([node(1, "S", ["dog.png", "image"])], [], sub), "1:2") == {
        "image": "dog.png",
        "upload": "image",
    }


def test_3d_viewers_send_what_needs_no_browser() -> None:
    assert alone("Preview3D", ["a.glb", ""]) == {"model_file": "a.glb", "image": ""}
    camera = {"state": {"zoom": 2}}
    given = alone("Load3D", ["m.glb", "x", "y", "z", "", 640], properties={"Camera Config": camera})
    assert given["width"] == 640
    assert given["upload 3d model"] == "x"
    assert given["image"] == {
        "image": "",
        "mask": "",
        "normal": "",
        "recording": "",
        "camera_info": {"zoom": 2},
        "model_3d_info": [],
    }


def test_a_recording_is_empty_outside_a_browser() -> None:
    assert alone("RecordAudio", ["blob:x", ""]) == {"audio": ""}


@pytest.mark.parametrize(
    ("values", "choice", "index"), [(["two", 0, "one", "two", ""], "two", 1), (["gone", 0, "one"], "gone", -1)]
)
def test_a_custom_list_has_as_many_options_as_are_filled(values: list[Any], choice: str, index: int) -> None:
    given = alone("CustomCombo", values)
    assert (given["choice"], given["index"], given["option1"]) == (choice, index, "one")


def test_the_title_is_the_persons_own_or_the_classs() -> None:
    ui = workflow([node(1, "Loader"), node(2, "Loader", title="Mine"), node(3, "Empty")])
    titles = [entry["_meta"]["title"] for entry in converted(ui).values()]
    assert titles == ["Load", "Mine", "Empty"]


def test_a_class_has_the_title_that_the_frontend_gives_it() -> None:
    assert converted(workflow([node(1, "PrimitiveString")]))["1"]["_meta"]["title"] == "Text String (DEPRECATED)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("a {red|blue} dog", "a red dog"),
        ("{solo} and {a{b|c}|d}", "solo and ab"),
        ("{open|end", "open"),
        (r"\{kept|as it is\}", "{kept|as it is}"),
        (r"back\slash", r"back\slash"),
        ("before // behind\nnext", "before \nnext"),
        ("a /* over\ntwo lines */ b", "a  b"),
        ("see https://example.org/{a|b}", "see https:"),
    ],
)
def test_prompts_lose_comments_and_choose(text: str, expected: str) -> None:
    assert alone("Text", [text])["text"] == expected


def test_choices_are_made_by_the_given_function() -> None:
    chosen = convert(workflow([node(1, "Text", ["{a|b|c}"])]), OBJECT_INFO, choose=lambda options: options[-1])
    assert chosen["1"]["inputs"]["text"] == "c"


def test_choices_are_random_if_nothing_else_is_asked_for() -> None:
    prompts = {convert(workflow([node(1, "Text", ["{a|b}"])]), OBJECT_INFO)["1"]["inputs"]["text"] for _ in range(64)}
    assert prompts == {"a", "b"}


def test_only_inputs_with_dynamic_prompts_choose() -> None:
    assert alone("Ordered", ["{a|b} // c"])["a"] == "{a|b} // c"


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("x_%date:yyyy-MM-dd hh-mm-ss%", "x_2031-02-03 04-05-06"),
        ("%date:hh.mm% %date:hh.mm.ss%", "%date:hh.mm% 04"),
        ("%date:yy M d h m s%", "31 2 3 4 5 6"),
        ("%Empty.width%x%Named.steps%", "640x12"),
        ("%Named.sampler_name%", "a_b"),
        ("%width% %nobody.x% %Empty.nothing% 100%", "%width% %nobody.x% %Empty.nothing% 100%"),
    ],
)
def test_file_names_know_dates_and_other_nodes(prefix: str, expected: str) -> None:
    ui = workflow(
        [
            save(1, None, prefix),
            node(2, "Empty", [640, 8, 1]),
            node(3, "Sampler", [1, "fixed", 12, 1.0, "a/b"], title="Named"),
        ]
    )
    assert inputs(ui)["filename_prefix"] == expected


def test_file_names_find_a_node_by_its_name_for_replacement_first() -> None:
    ui = workflow(
        [
            save(1, None, "%me.width%"),
            node(2, "Empty", [1, 8, 1], title="me"),
            node(3, "Empty", [2, 8, 1], properties={"Node name for S&R": "me"}),
        ]
    )
    assert inputs(ui)["filename_prefix"] == "2"


def test_other_texts_keep_their_percent_signs() -> None:
    assert alone("Ordered", ["%date:yyyy%"])["a"] == "%date:yyyy%"


MODE_SLOTS = [slot("image", "IMAGE"), slot("mode", "COMFY_DYNAMICCOMBO_V3", widget=True)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, {"mode": "by size", "mode.width": 512, "mode.height": 512, "last": 20}),
        (["by size", 64, 32, 5], {"mode": "by size", "mode.width": 64, "mode.height": 32, "last": 5}),
        (["by factor", 1.5, 5], {"mode": "by factor", "mode.factor": 1.5, "last": 5}),
        (["by factor"], {"mode": "by factor", "mode.factor": 2.0, "last": 20}),
        (["nested", "a", 3, 5], {"mode": "nested", "mode.inner": "a", "mode.inner.x": 3, "last": 5}),
        (["nested", "b", "y", 5], {"mode": "nested", "mode.inner": "b", "mode.inner.y": "y", "last": 5}),
        ([None, 64, 32, 5], {"mode": "by size", "mode.width": 512, "mode.height": 512, "last": 64}),
        (["unknown", 5], {"mode": "unknown", "last": 5}),
    ],
)
def test_a_dynamic_list_brings_the_inputs_of_its_option(values: Any, expected: Json) -> None:
    assert alone("Resize", values) == expected


def test_a_prompt_that_an_option_brings_is_sent_raw() -> None:
    assert alone("Resize", ["nested", "b", "{a|b}"])["mode.inner.y"] == "{a|b}"


def test_choices_that_are_numbers_are_sorted_as_a_browser_does() -> None:
    numbers: list[Json] = [{"key": key, "inputs": {}} for key in ("x", "20", "3")]
    info = {"N": {"input": {"required": {"n": ["COMFY_DYNAMICCOMBO_V3", {"options": numbers}]}}, "output": []}}
    assert convert(workflow([node(1, "N")]), info)["1"]["inputs"] == {"n": "3"}


def test_a_family_inside_a_dynamic_option_keeps_all_its_links() -> None:
    family = OBJECT_INFO["Batch"]["input"]["required"]["images"]
    option = {"key": "a", "inputs": {"required": {"images": family}}}
    info = OBJECT_INFO | {
        "D": {"input": {"required": {"d": ["COMFY_DYNAMICCOMBO_V3", {"options": [option]}]}}, "output": []}
    }
    slots = [slot(f"d.images.image{index}", "IMAGE", index + 1) for index in range(3)]
    ui = workflow(
        [picture(1, 1, 2, 3), node(2, "D", ["a"], inputs=slots)],
        [[index + 1, 1, 0, 2, index, "IMAGE"] for index in range(3)],
    )
    expected = {"d": "a"} | {f"d.images.image{index}": ["1", 0] for index in range(3)}
    assert convert(ui, info)["2"]["inputs"] == expected


def test_links_into_a_dynamic_option_go_over_by_name() -> None:
    mask = slot("mode.area", "MASK", 1)
    gone = slot("mode.gone", "MASK", 2)
    factor = slot("mode.width", "INT", 3, widget=True)
    ui = workflow(
        [
            node(1, "LoadImage", [], outputs=[out("IMAGE"), out("MASK", 1, 2)]),
            node(2, "Values", outputs=[out("INT", 3)]),
            node(3, "Resize", ["by size", 64, 32, 5], inputs=[*MODE_SLOTS, factor, gone, mask]),
        ],
        [[1, 1, 1, 3, 4, "MASK"], [2, 1, 1, 3, 3, "MASK"], [3, 2, 0, 3, 2, "INT"]],
    )
    assert inputs(ui, 3) == {
        "mode": "by size",
        "mode.width": ["2", 0],
        "mode.height": 32,
        "mode.area": ["1", 1],
        "last": 5,
    }


def test_a_family_of_inputs_grows_with_its_links_and_keeps_gaps() -> None:
    names = ["images.image0", "images.image1", "images.image2", "images.image3"]
    ui = workflow(
        [
            picture(1, 1, 3),
            node(
                2,
                "Batch",
                [],
                inputs=[slot(name, "IMAGE", index if index != 2 else None) for index, name in enumerate(names, 1)][:3],
            ),
        ],
        [[1, 1, 0, 2, 0, "IMAGE"], [3, 1, 0, 2, 2, "IMAGE"]],
    )
    assert inputs(ui, 2) == {"images.image0": ["1", 0], "images.image2": ["1", 0]}


def test_a_family_without_links_sends_nothing() -> None:
    assert alone("Batch", []) == {}


def test_a_family_of_widgets_is_named_by_its_list() -> None:
    assert alone("Values", [1.5, 2.5]) == {"values.a": 1.5, "values.b": 2.5}


def test_a_family_of_widgets_grows_with_its_links_and_takes_more_places() -> None:
    slots = [slot("values.a", "FLOAT", 1, widget=True), slot("values.b", "FLOAT", 2, widget=True)]
    ui = workflow(
        [node(1, "Values", outputs=[out("INT", 1, 2)]), node(2, "Values", [1.0, 2.0, 3.0, 4.0], inputs=slots)],
        [[1, 1, 0, 2, 0, "FLOAT"], [2, 1, 0, 2, 1, "FLOAT"]],
    )
    assert inputs(ui, 2) == {"values.a": ["1", 0], "values.b": ["1", 0], "values.c": 4.0}


def test_nothing_given_is_changed() -> None:
    ui = workflow([node(1, "Odd", [{"x": 1}, 0, 0, 0, 0, ["#1"]]), node(2, "Resize", ["by factor", 1])])
    before = copy.deepcopy(ui)
    prompt = convert(ui, OBJECT_INFO, now=NOW)
    prompt["1"]["inputs"]["box"]["x"] = 2
    prompt["1"]["inputs"]["colors"]["__value__"].append("#2")
    assert ui == before
