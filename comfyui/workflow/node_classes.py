"""What ComfyUI's /object_info says of node classes, typed. Pure.

Format: server.py of ComfyUI 0.30.0 (node_info): class → {"input": {"required"|"optional": {name: [type, options]}},
"input_order", "output": [types], "output_node"}. A choice is written [[values…], options] or
["COMBO", {"options": [values…]}].
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.weights.linked.names import is_by_link

CHOICE = "COMBO"
ANY_TYPES = frozenset({"*", "COMFY_MATCHTYPE_V3"})
"""Types that go with every other (comfy_execution/validation.py)."""
WEIGHT_TYPES = frozenset({"MODEL", "CLIP", "VAE", "CONTROL_NET", "CLIP_VISION", "STYLE_MODEL", "UPSCALE_MODEL"})
"""Types of what is read from weight files (comfy_api/latest/_io.py)."""
DYNAMIC_PREFIX = "COMFY_"
"""Inputs of such types (COMFY_AUTOGROW_V3, COMFY_DYNAMICCOMBO_V3…) become others when a value is chosen."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a node class; `choices` are the values of a choice, None for other types."""

    name: str
    type: str
    required: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None

    @property
    def takes_file(self) -> bool:
        """Whether a person uploads a file for it: such a choice also takes names that were not there at start."""
        return any(key.endswith("_upload") and value for key, value in self.options.items())

    @property
    def dynamic(self) -> bool:
        """Whether it stands for other inputs, which /object_info cannot list."""
        return self.type.startswith(DYNAMIC_PREFIX) and self.type not in ANY_TYPES

    def accepts(self, output_type: str) -> bool:
        """Whether an output of this type may be linked to it: types are lists with commas, and one in common is enough.

        Source: comfy_execution/validation.py, validate_node_input, not strict.
        """
        ours, theirs = (frozenset(part.strip() for part in text.split(",")) for text in (self.type, output_type))
        return bool(ours & theirs) or bool((ours | theirs) & ANY_TYPES)


def read_input(name: str, config: object, *, required: bool) -> InputSpec | None:
    """An input from its [type, options], None where that makes no sense."""
    if not isinstance(config, list | tuple) or not config:
        return None
    kind = config[0]
    options = config[1] if len(config) > 1 and isinstance(config[1], Mapping) else {}
    if isinstance(kind, list | tuple):
        return InputSpec(name, CHOICE, required, options, _choices(kind))
    choices = _choices(options.get("options") or ()) if kind == CHOICE else None
    return InputSpec(name, str(kind), required, options, choices)


def _choices(values: Iterable[Any]) -> tuple[str, ...]:
    """The names to choose from; a file that another prediction's link has brought is nobody else's."""
    return tuple(str(value) for value in values if not is_by_link(value))


class NodeClasses:
    """The node classes of one ComfyUI, by name."""

    def __init__(self, object_info: Mapping[str, Any]) -> None:
        self._info = object_info

    def __contains__(self, class_type: str) -> bool:
        return class_type in self._info

    def nearest(self, class_type: str) -> list[str]:
        """Up to three classes whose names are like this one."""
        return difflib.get_close_matches(class_type, list(self._info), n=3)

    def inputs(self, class_type: str) -> list[InputSpec]:
        """The inputs of a class, required ones first, in ComfyUI's order."""
        groups = self._of(class_type).get("input") or {}
        specs = []
        for group in ("required", "optional"):
            for name, config in (groups.get(group) or {}).items():
                if spec := read_input(str(name), config, required=group == "required"):
                    specs.append(spec)
        return specs

    def input(self, class_type: str, name: str | None) -> InputSpec | None:
        """One input of a class, None where there is none of that name."""
        return next((spec for spec in self.inputs(class_type) if spec.name == name), None)

    def outputs(self, class_type: str) -> Sequence[str] | None:
        """The types of a class's outputs, None for a class that is not known."""
        outputs = self._of(class_type).get("output")
        if not isinstance(outputs, list | tuple):
            return None
        return [output if isinstance(output, str) else CHOICE for output in outputs]

    def is_comfyuis_own(self, class_type: str) -> bool:
        """Whether ComfyUI itself brings the class, and no custom node pack."""
        module = str(self._of(class_type).get("python_module"))
        return module == "nodes" or module.startswith("comfy_extras.")

    def loads_weights(self, class_type: str) -> bool:
        """Whether nodes of this class read weight files: they choose a name and give a model, or a part of one."""
        chooses = any(spec.choices is not None and spec.name.endswith("_name") for spec in self.inputs(class_type))
        return chooses and not WEIGHT_TYPES.isdisjoint(self.outputs(class_type) or ())

    def is_output(self, class_type: str) -> bool:
        """Whether ComfyUI runs a node of this class for its own sake: it saves or shows something."""
        return bool(self._of(class_type).get("output_node"))

    def _of(self, class_type: str) -> Mapping[str, Any]:
        info = self._info.get(class_type)
        return info if isinstance(info, Mapping) else {}
