"""The widgets that the frontend makes for an input, with their first value and how much room they take in the file.

Source of the rules: the frontend's scripts/widgets.ts and the composables it names (useIntWidget.ts, useFloatWidget.ts,
useComboWidget.ts, …), uploadImage.ts, uploadAudio.ts, load3d.ts, webcamCapture.ts. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from comfyui.workflow.convert.javascript import UNSET, is_missing, is_truthy, round_half_up, to_fixed, to_number
from comfyui.workflow.convert.model import Node, Widget
from comfyui.workflow.convert.specs import InputSpec

SEED_NAMES = ("seed", "noise_seed")
VIEWPORT_CLASSES = {
    "Preview3DAdvanced",
    "Save3DAdvanced",
    "PreviewGaussianSplat",
    "PreviewPointCloud",
    "SaveGaussianSplat",
    "SavePointCloud",
}
BOX_FIELDS = ("x", "y", "width", "height")


def make_widgets(node: Node, spec: InputSpec) -> list[Widget]:
    """Every widget for an input, the input's own first; none for a type without widgets."""
    maker = MAKERS.get(spec.widget_type)
    return maker(node, spec) if maker else []


def has_widget(spec: InputSpec) -> bool:
    """Whether an input has a widget, and its socket comes with that."""
    return spec.widget_type in MAKERS or spec.widget_type == "COMFY_DYNAMICCOMBO_V3"


def _option(spec: InputSpec, name: str, default: Any) -> Any:
    value = spec.options.get(name)
    return default if value is None else value


def _simple(kind: str, default: Any) -> Callable[[Node, InputSpec], list[Widget]]:
    return lambda _node, spec: [Widget(spec.name, kind, _option(spec, "default", default))]


def snap_int(spec: InputSpec) -> Callable[[Any], Any]:
    """Round to the nearest step, counted from the minimum (useIntWidget.ts)."""
    step = to_number(_option(spec, "step", 1)) or 1
    least = to_number(_option(spec, "min", 0))

    def snap(value: Any) -> Any:
        number = to_number(value)
        if step == 1:
            return round_half_up(number)
        offset = math.fmod(least, step) if math.isfinite(least) else math.nan
        offset = int(offset) if isinstance(step, int) and isinstance(least, int) else offset
        if isinstance(number, int) and isinstance(step, int) and isinstance(offset, int):
            # Exact for seeds, which have more digits than a double.
            return (2 * (number - offset) + step) // (2 * step) * step + offset
        snapped = round_half_up((number - offset) / step) * step + offset
        return int(snapped) if math.isfinite(snapped) and float(snapped).is_integer() else snapped

    return snap


def snap_float(spec: InputSpec) -> Callable[[Any], Any]:
    """Round to `round`, or to the digits of `step`, and keep within the limits (useFloatWidget.ts)."""
    step = to_number(_option(spec, "step", 0.5))
    digits = max(0, -math.floor(math.log10(step))) if step > 0 else 0
    rounding = spec.options.get("round")
    to = to_number(rounding) if is_truthy(rounding) else (10**-digits if digits else 0)
    least, most = to_number(_option(spec, "min", 0)), to_number(_option(spec, "max", 2048))

    def snap(value: Any) -> Any:
        if not to:
            return value
        number = to_fixed(round_half_up(to_number(value) / to) * to, digits)
        return number if math.isnan(number) else min(max(number, least), most)

    return snap


def _control(spec: InputSpec, *, for_list: bool, default: str) -> list[Widget]:
    """control_after_generate, and for a list a filter too: in the file, never in the prompt."""
    asked = spec.options.get("control_after_generate")
    prefix = f"{spec.options['control_prefix']} " if spec.options.get("control_prefix") else ""
    name = asked if isinstance(asked, str) and asked else f"{prefix}control_after_generate"
    choices = ["fixed", "increment", "decrement", "randomize"]
    first = asked if isinstance(asked, str) and asked else default
    widgets = [Widget(name, "combo", first, in_prompt=False, choices=choices)]
    if for_list:
        widgets.append(Widget(f"{prefix}control_filter_list", "string", "", in_prompt=False))
    return widgets


def _int(_node: Node, spec: InputSpec) -> list[Widget]:
    limits = _option(spec, "min", 0), _option(spec, "max", 2048)
    widget = Widget(spec.name, "number", _option(spec, "default", 0), snap=snap_int(spec), limits=limits)
    if is_truthy(_option(spec, "control_after_generate", spec.name in SEED_NAMES)):
        return [widget, *_control(spec, for_list=False, default="randomize")]
    return [widget]


def _float(_node: Node, spec: InputSpec) -> list[Widget]:
    limits = _option(spec, "min", 0), _option(spec, "max", 2048)
    widget = Widget(spec.name, "number", _option(spec, "default", 0), snap=snap_float(spec), limits=limits)
    if is_truthy(spec.options.get("control_after_generate")):
        return [widget, *_control(spec, for_list=False, default="fixed")]
    return [widget]


def _string(_node: Node, spec: InputSpec) -> list[Widget]:
    kind = "customtext" if is_truthy(spec.options.get("multiline")) else "text"
    expands = spec.options.get("dynamicPrompts") is True
    return [Widget(spec.name, kind, _option(spec, "default", ""), expands=expands)]


def _combo(_node: Node, spec: InputSpec) -> list[Widget]:
    choices = spec.choices or []
    default = spec.options.get("default")
    remote = spec.options.get("remote")
    if is_truthy(spec.options.get("multi_select")):
        widgets = [Widget(spec.name, "multiselect", [])]
    else:
        first = choices[0] if choices else ("Loading..." if remote else UNSET)
        widgets = [Widget(spec.name, "combo", default if is_truthy(default) else first, choices=choices)]
    if remote:
        widgets.append(Widget("Auto-refresh after generation", "toggle", value=False, in_prompt=False))
        if isinstance(remote, dict) and remote.get("refresh_button"):
            widgets.append(Widget("refresh", "button", "refresh"))
    if is_truthy(spec.options.get("control_after_generate")):
        widgets += _control(spec, for_list=True, default="randomize")
    return widgets


def _bounding_box(_node: Node, spec: InputSpec) -> list[Widget]:
    box = _option(spec, "default", {"x": 0, "y": 0, "width": 512, "height": 512})
    fields = [Widget(name, "number", box.get(name, UNSET), in_prompt=False) for name in BOX_FIELDS]
    return [Widget(spec.name, "boundingbox", box), *fields]


def _nested_option(kind: str, key: str, default: Any) -> Callable[[Node, InputSpec], list[Widget]]:
    def make(_node: Node, spec: InputSpec) -> list[Widget]:
        options = spec.options.get("options")
        value = options.get(key) if isinstance(options, dict) else None
        return [Widget(spec.name, kind, default if is_missing(value) else value)]

    return make


def _color(_node: Node, spec: InputSpec) -> list[Widget]:
    options = spec.options.get("options")
    default = options.get("default") if isinstance(options, dict) else None
    return [Widget(spec.name, "color", _option(spec, "default", default or "#000000"))]


def _image_compare(_node: Node, spec: InputSpec) -> list[Widget]:
    return [Widget(spec.name, "imagecompare", ["", ""], in_file=False)]


def _button(value: str) -> Callable[[Node, InputSpec], list[Widget]]:
    return lambda _node, spec: [Widget(spec.name, "button", value, in_prompt=False)]


def _audio_player(_node: Node, spec: InputSpec) -> list[Widget]:
    return [Widget(spec.name, "audioUI", "", in_prompt=False, in_file=False)]


def _audio_recorder(_node: Node, spec: InputSpec) -> list[Widget]:
    # Outside a browser nothing was recorded, for which the frontend too sends an empty name.
    return [Widget(spec.name, "audioUI", "", fixed=True), Widget(spec.name, "button", "", in_prompt=False)]


def _viewer(_node: Node, spec: InputSpec) -> list[Widget]:
    return [Widget(spec.name, "load3D", "", fixed=True)]


def _scene(node: Node, spec: InputSpec) -> list[Widget]:
    buttons = []
    if node.widget("model_file"):
        names = {"upload 3d model": "upload3dmodel", "upload extra resources": "uploadExtraResources", "clear": "clear"}
        buttons = [Widget(name, "button", value) for name, value in names.items()]
    name = "viewport_state" if node.comfy_class in VIEWPORT_CLASSES else "image"
    return [*buttons, Widget(name, "scene", "", fixed=True)]


def _scene_advanced(_node: Node, spec: InputSpec) -> list[Widget]:
    return [Widget("viewport_state", "scene", "", fixed=True)]


def _webcam(_node: Node, spec: InputSpec) -> list[Widget]:
    return [Widget(spec.name, "webcam", "", fixed=True)]


MAKERS: dict[str, Callable[[Node, InputSpec], list[Widget]]] = {
    "INT": _int,
    "FLOAT": _float,
    "BOOLEAN": _simple("toggle", default=False),
    "STRING": _string,
    "MARKDOWN": _simple("customtext", ""),
    "COMBO": _combo,
    "IMAGEUPLOAD": _button("image"),
    "AUDIOUPLOAD": _button(""),
    "AUDIO_UI": _audio_player,
    "AUDIO_RECORD": _audio_recorder,
    "COLOR": _color,
    "COLORS": _simple("colors", []),
    "IMAGECOMPARE": _image_compare,
    "BOUNDING_BOX": _bounding_box,
    "BOUNDING_BOXES": _simple("boundingboxes", []),
    "CHART": _nested_option("chart", "data", {}),
    "GALLERIA": _nested_option("galleria", "images", []),
    "TEXTAREA": _nested_option("textarea", "default", ""),
    "PAINTER": _simple("painter", ""),
    "CURVE": _simple("curve", {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"}),
    "RANGE": _simple("range", {"min": 0.0, "max": 1.0}),
    "LOAD_3D": _scene,
    "LOAD_3D_ADVANCED": _scene_advanced,
    "PREVIEW_3D": _viewer,
    "WEBCAM": _webcam,
}
"""By type of input. COMFY_DYNAMICCOMBO_V3 is not among them: what it makes changes with its value (dynamic.py)."""
