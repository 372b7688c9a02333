"""Node classes as /object_info describes them, with what the frontend adds to some of them.

Source of the rules: the frontend's schemas/nodeDef/migration.ts (both forms of a list of choices), its
nodeDefOrderingUtil.ts (input_order), and the extensions that add widgets of their own (uploadImage.ts, uploadAudio.ts,
load3d*.ts, saveMesh.ts). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

AUDIO_PLAYERS = {"LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"}
ADDED_VIEWERS = {"Preview3D": ("image", "PREVIEW_3D"), "SaveGLB": ("image", "PREVIEW_3D")} | {
    "Load3DAdvanced": ("viewport_state", "LOAD_3D_ADVANCED")
}
ENGLISH_TITLES = {
    "LTXVConcatAVLatent": "LTXVConcatAVLatent",
    "LTXVSeparateAVLatent": "LTXVSeparateAVLatent",
    "MinimaxHailuoVideoNode": "MiniMax Hailuo Video",
    "PrimitiveString": "Text String (DEPRECATED)",
    "PrimitiveStringMultiline": "Input Text",
    "RecraftImageToImageNode": "Recraft Image to Image",
    "RecraftTextToImageNode": "Recraft Text to Image",
    "RecraftTextToVectorNode": "Recraft Text to Vector",
}
"""The classes of ComfyUI 0.30.0 whose title in the frontend's English is not the one in /object_info."""
PICTURE_UPLOADS = ("image_upload", "video_upload", "animated_image_upload")


@dataclass(frozen=True)
class InputSpec:
    """One input of a class: `type` is COMBO for any list of choices."""

    name: str
    type: str
    options: Mapping[str, Any]
    choices: Sequence[Any] | None = None
    optional: bool = False

    @property
    def widget_type(self) -> str:
        """The type of its widget, where that is not the type of what may be linked."""
        return str(self.options.get("widgetType") or self.type)

    @property
    def forced_input(self) -> bool:
        """Whether it is a socket without a widget."""
        return bool(self.options.get("forceInput"))

    def named(self, name: str, *, optional: bool | None = None) -> InputSpec:
        """The same input under another name."""
        return replace(self, name=name, optional=self.optional if optional is None else optional)


@dataclass(frozen=True)
class ClassSpec:
    """A node class: `inputs` in the order in which widgets are made, `declared` as /object_info lists them."""

    name: str
    title: str
    inputs: Sequence[InputSpec]
    declared: Sequence[InputSpec]
    outputs: Sequence[tuple[str, str]]
    output_matches: Sequence[str | None] = ()


class ClassLibrary:
    """The classes of one /object_info, each read when it is first asked for."""

    def __init__(self, object_info: Mapping[str, Any]) -> None:
        self._object_info = object_info
        self._known: dict[str, ClassSpec | None] = {}

    def find(self, class_type: str) -> ClassSpec | None:
        """The class of that name, None if this ComfyUI has none."""
        if class_type not in self._known:
            entry = self._object_info.get(class_type)
            self._known[class_type] = read_class(class_type, entry) if isinstance(entry, Mapping) else None
        return self._known[class_type]


def read_class(name: str, entry: Mapping[str, Any]) -> ClassSpec:
    """A class from its entry in /object_info."""
    groups = entry.get("input") or {}
    required = dict(groups.get("required") or {})
    _add_extras(name, required)
    declared = list(read_inputs(required))
    declared += list(read_inputs(groups.get("optional") or {}, optional=True))
    # A name in both groups is one input, the optional one.
    by_name = {spec.name: spec for spec in declared}
    return ClassSpec(
        name,
        ENGLISH_TITLES.get(name) or str(entry.get("display_name") or name),
        _in_order(by_name, entry.get("input_order")),
        list(by_name.values()),
        list(_outputs(entry)),
        list(entry.get("output_matchtypes") or ()),
    )


def read_inputs(group: Mapping[str, Any], *, optional: bool = False) -> Iterator[InputSpec]:
    """The inputs of one group ("required" or "optional"), in the order given."""
    for name, spec in group.items():
        if isinstance(spec, list | tuple) and spec:
            yield read_input(str(name), spec, optional=optional)


def read_input(name: str, spec: Sequence[Any], *, optional: bool = False) -> InputSpec:
    """One input: ["INT", {options}], ["COMBO", {"options": […]}] or, in the older form, [[choices], {options}]."""
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if isinstance(spec[0], list | tuple):
        return InputSpec(name, "COMBO", options, list(spec[0]), optional)
    choices = list(options.get("options") or []) if spec[0] == "COMBO" else None
    return InputSpec(name, str(spec[0]), options, choices, optional)


def _add_extras(name: str, required: dict[str, Any]) -> None:
    if name in AUDIO_PLAYERS:
        required["audioUI"] = ["AUDIO_UI", {}]
    if name in ADDED_VIEWERS:
        input_name, kind = ADDED_VIEWERS[name]
        required[input_name] = [kind, {}]
    for input_name, spec in list(required.items()):
        options = spec[1] if isinstance(spec, list | tuple) and len(spec) > 1 and isinstance(spec[1], Mapping) else {}
        if input_name == "audio" and options.get("audio_upload") is True:
            required["upload"] = ["AUDIOUPLOAD", {}]
        if any(options.get(key) is True for key in PICTURE_UPLOADS) and (
            spec[0] == "COMBO" or isinstance(spec[0], list | tuple)
        ):
            required["upload"] = ["IMAGEUPLOAD", {**options, "imageInputName": input_name}]
            break


def _in_order(by_name: Mapping[str, InputSpec], input_order: object) -> list[InputSpec]:
    if not isinstance(input_order, Mapping):
        return list(by_name.values())
    names = [(name, False) for name in input_order.get("required") or ()]
    names += [(name, True) for name in input_order.get("optional") or ()]
    ordered = {
        name: by_name[name] for name, optional in names if name in by_name and by_name[name].optional == optional
    }
    return [*ordered.values(), *(spec for name, spec in by_name.items() if name not in ordered)]


def _outputs(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = entry.get("output_name") or ()
    for index, output in enumerate(entry.get("output") or ()):
        kind = "COMBO" if isinstance(output, list | tuple) else str(output)
        name = names[index] if index < len(names) and names[index] else f"output_{index}"
        yield str(name), "*" if kind == "COMFY_MATCHTYPE_V3" else kind
