"""Small UI workflows and a small /object_info, written by hand: one class for each kind of input there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from comfyui.workflow.convert import convert

NOW = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
Json = dict[str, Any]


def class_info(
    outputs: Sequence[str] = (),
    *,
    required: Mapping[str, Any] | None = None,
    optional: Mapping[str, Any] | None = None,
    **more: Any,
) -> Json:
    """An entry of /object_info."""
    return {
        "input": {"required": dict(required or {}), "optional": dict(optional or {})},
        "output": list(outputs),
        "output_name": list(outputs),
        **more,
    }


SEED = ["INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}]
STEPS = ["INT", {"default": 20, "min": 1, "max": 10000}]
CFG = ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}]
SIZE = ["INT", {"default": 512, "min": 16, "max": 16384, "step": 8}]
TEXT = ["STRING", {"multiline": True, "dynamicPrompts": True}]
MODE_OPTIONS = [
    {"key": "by size", "inputs": {"required": {"width": SIZE, "height": SIZE}, "optional": {"area": ["MASK", {}]}}},
    {"key": "by factor", "inputs": {"required": {"factor": ["FLOAT", {"default": 2.0}]}}},
    {
        "key": "nested",
        "inputs": {
            "required": {
                "inner": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "a", "inputs": {"required": {"x": STEPS}}},
                            {"key": "b", "inputs": {"required": {"y": TEXT}}},
                        ]
                    },
                ]
            }
        },
    },
]

OBJECT_INFO: Json = {
    "Loader": class_info(
        ["MODEL", "CLIP", "VAE"],
        required={"ckpt_name": ["COMBO", {"options": ["a.ckpt", "b.ckpt"]}]},
        display_name="Load",
    ),
    "Text": class_info(["CONDITIONING"], required={"text": TEXT, "clip": ["CLIP", {}]}),
    "Empty": class_info(["LATENT"], required={"width": SIZE, "height": SIZE, "batch": ["INT", {"default": 1}]}),
    "Sampler": class_info(
        ["LATENT"],
        required={
            "model": ["MODEL"],
            "seed": SEED,
            "steps": STEPS,
            "cfg": CFG,
            "sampler_name": [["euler", "heun"], {}],
            "positive": ["CONDITIONING"],
            "latent": ["LATENT"],
        },
    ),
    "Decode": class_info(["IMAGE"], required={"samples": ["LATENT"], "vae": ["VAE"]}),
    "SaveImage": class_info(
        required={"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "out"}]}, output_node=True
    ),
    "Mix": class_info(["MASK", "IMAGE"], required={"image": ["IMAGE"], "amount": CFG}, optional={"mask": ["MASK"]}),
    "Picky": class_info(["IMAGE"], required={"either": ["MASK,IMAGE"], "amount": STEPS}),
    "LoadImage": class_info(["IMAGE", "MASK"], required={"image": [["cat.png", "dog.png"], {"image_upload": True}]}),
    "LoadImageOutput": class_info(
        ["IMAGE"],
        required={"image": ["COMBO", {"image_upload": True, "remote": {"route": "/x", "refresh_button": True}}]},
    ),
    "LoadAudio": class_info(["AUDIO"], required={"audio": ["COMBO", {"options": ["s.mp3"], "audio_upload": True}]}),
    "Ordered": class_info(
        required={"b": STEPS, "a": ["STRING", {"default": "?"}]},
        optional={"c": ["BOOLEAN", {"default": True}]},
        input_order={"required": ["a", "b"], "optional": ["c"]},
    ),
    "Forced": class_info(required={"words": ["STRING", {"forceInput": True}], "count": STEPS}),
    "Resize": class_info(
        ["IMAGE"],
        required={"image": ["IMAGE"], "mode": ["COMFY_DYNAMICCOMBO_V3", {"options": MODE_OPTIONS}], "last": STEPS},
    ),
    "Batch": class_info(
        ["IMAGE"],
        required={
            "images": [
                "COMFY_AUTOGROW_V3",
                {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 1, "max": 4}},
            ]
        },
    ),
    "Values": class_info(
        ["INT"],
        required={
            "values": [
                "COMFY_AUTOGROW_V3",
                {"template": {"input": {"required": {"v": ["FLOAT", {"default": 0.5}]}}, "names": ["a", "b", "c"]}},
            ]
        },
    ),
    "Switch": class_info(
        ["COMFY_MATCHTYPE_V3"],
        required={
            "on": ["BOOLEAN", {}],
            "left": ["COMFY_MATCHTYPE_V3", {"template": {"template_id": "t", "allowed_types": "*"}}],
            "right": ["COMFY_MATCHTYPE_V3", {"template": {"template_id": "t", "allowed_types": "*"}}],
        },
        output_matchtypes=["t"],
    ),
    "Odd": class_info(
        required={
            "box": ["BOUNDING_BOX", {"default": {"x": 1, "y": 2, "width": 3, "height": 4}, "socketless": True}],
            "colors": ["COLORS", {"default": ["#fff"]}],
            "color": ["COLOR", {"default": "#123456"}],
            "curve": ["CURVE", {}],
            "range": ["RANGE", {}],
            "compare": ["IMAGECOMPARE", {}],
            "pick": ["COMBO", {"options": ["p", "q"], "control_after_generate": True}],
            "many": ["COMBO", {"options": ["p", "q"], "multi_select": True}],
            "both": ["FLOAT,INT", {"widgetType": "FLOAT", "default": 25.0, "step": 0.01}],
            "after": ["INT", {"default": 7}],
        }
    ),
    "WebcamCapture": class_info(["IMAGE"], required={"image": ["WEBCAM", {}]}),
    "RecordAudio": class_info(["AUDIO"], required={"audio": ["AUDIO_RECORD", {}]}),
    "Load3D": class_info(["IMAGE"], required={"model_file": [["m.glb"], {}], "image": ["LOAD_3D", {}], "width": SIZE}),
    "Preview3D": class_info(required={"model_file": ["STRING", {"default": ""}]}),
    "PrimitiveString": class_info(["STRING"], required={"value": ["STRING", {}]}, display_name="Text"),
    "CustomCombo": class_info(["STRING", "INT"], required={"choice": ["COMBO", {"options": []}]}),
    "Seeded": class_info(["NOISE"], required={"noise_seed": ["INT", {"default": 1}], "tail": STEPS}),
}


def node(node_id: int, class_type: str, values: Any = None, **more: Any) -> Json:
    """A node as ComfyUI saves it."""
    return (
        {"id": node_id, "type": class_type, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
        | ({} if values is None else {"widgets_values": values})
        | more
    )


def slot(name: str, kind: str, link: int | None = None, *, widget: bool = False) -> Json:
    """An input."""
    return {"name": name, "type": kind, "link": link} | ({"widget": {"name": name}} if widget else {})


def out(kind: str, *links: int) -> Json:
    """An output."""
    return {"name": kind, "type": kind, "links": list(links)}


def link(link_id: int, origin: int, origin_slot: int, target: int, target_slot: int, kind: str = "*") -> Json:
    """A link inside a subgraph."""
    return {
        "id": link_id,
        "origin_id": origin,
        "origin_slot": origin_slot,
        "target_id": target,
        "target_slot": target_slot,
        "type": kind,
    }


def io(name: str, kind: str, *links: int) -> Json:
    """An input or output of a subgraph definition."""
    return {"id": f"io-{name}", "name": name, "type": kind, "linkIds": list(links)}


def definition(
    name: str, nodes: list[Json], links: list[Json], *, inputs: Sequence[Json] = (), outputs: Sequence[Json] = ()
) -> Json:
    """A subgraph's definition; its id is its name."""
    return {
        "id": name,
        "name": name,
        "version": 1,
        "nodes": nodes,
        "links": links,
        "inputs": list(inputs),
        "outputs": list(outputs),
    }


def workflow(nodes: list[Json], links: list[list[Any]] | None = None, *subgraphs: Json, **more: Any) -> Json:
    """A workflow in UI format, version 0.4: links are [id, from node, from slot, to node, to slot, type]."""
    ids = [entry["id"] for entry in nodes]
    last = max([0, *(node_id for node_id in ids if isinstance(node_id, int))])
    ui: Json = {"last_node_id": last, "nodes": nodes, "links": links or [], "groups": [], "version": 0.4}
    return ui | ({"definitions": {"subgraphs": list(subgraphs)}} if subgraphs else {}) | more


def converted(ui: Json, **more: Any) -> Json:
    """The prompt of a workflow; the first of several choices, at a fixed time."""
    return convert(ui, OBJECT_INFO, now=NOW, choose=lambda options: options[0], **more)


def inputs(ui: Json, node_id: int | str = 1) -> Json:
    """What one node of the prompt is given."""
    given: Json = converted(ui)[str(node_id)]["inputs"]
    return given


def alone(class_type: str, values: Any = None, **more: Any) -> Json:
    """What a node gets that stands alone in its workflow."""
    return inputs(workflow([node(1, class_type, values, **more)]))


def picture(node_id: int = 1, *links: int, **more: Any) -> Json:
    """A source of pictures: LoadImage with both outputs; `links` go from its first."""
    return node(node_id, "LoadImage", ["cat.png", "image"], outputs=[out("IMAGE", *links), out("MASK")], **more)


def save(node_id: int, link_id: int | None, prefix: str = "out") -> Json:
    """A node that saves what comes over a link."""
    return node(node_id, "SaveImage", [prefix], inputs=[slot("images", "IMAGE", link_id)])
