"""Which custom node pack a class comes from, where that can be told. Pure.

A workflow in UI format says it of each node, in `properties`: `cnr_id` is a pack's name in the Comfy registry, `aux_id`
its repository on GitHub. A workflow in API format does not; then the name of the class tells for the packs below, whose
classes share a prefix or a suffix. The names are those of the packs' own repositories.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# fmt: off
_SIGNS = tuple((re.compile(pattern), pack) for pattern, pack in (
    (r" \(rgthree\)$", "rgthree/rgthree-comfy"),
    (r"\|pysssss$", "pythongosssss/ComfyUI-Custom-Scripts"),
    (r"//Inspire$", "ltdrdata/ComfyUI-Inspire-Pack"),
    (r"^Ultralytics", "ltdrdata/ComfyUI-Impact-Subpack"),
    (r"^(Impact|FaceDetailer|DetailerForEach|SEGS|SAMLoader$|Bbox|Segm)", "ltdrdata/ComfyUI-Impact-Pack"),
    (r"^VHS_", "Kosinkadink/ComfyUI-VideoHelperSuite"),
    (r"^ADE_", "Kosinkadink/ComfyUI-AnimateDiff-Evolved"),
    (r"^ACN_", "Kosinkadink/ComfyUI-Advanced-ControlNet"),
    (r"^(Apply)?InstantID", "cubiq/ComfyUI_InstantID"),
    (r"^IPAdapter", "cubiq/ComfyUI_IPAdapter_plus"),
    (r"^\w+\+$", "cubiq/ComfyUI_essentials"),
    (r"^(PulidFlux|ApplyPulidFlux)", "balazik/ComfyUI-PuLID-Flux"),
    (r"^(Apply)?Pulid", "cubiq/PuLID_ComfyUI"),
    (r"^WanVideo", "kijai/ComfyUI-WanVideoWrapper"),
    (r"^HyVideo", "kijai/ComfyUI-HunyuanVideoWrapper"),
    (r"Florence2", "kijai/ComfyUI-Florence2"),
    (r"LivePortrait", "kijai/ComfyUI-LivePortraitKJ"),
    (r"^SUPIR_", "kijai/ComfyUI-SUPIR"),
    (r"KJ(v\d)?$", "kijai/ComfyUI-KJNodes"),
    (r"GGUF", "city96/ComfyUI-GGUF"),
    (r"^Nunchaku", "nunchaku-tech/ComfyUI-nunchaku"),
    (r"Preprocessor$", "Fannovel16/comfyui_controlnet_aux"),
    (r" VFI$", "Fannovel16/ComfyUI-Frame-Interpolation"),
    (r"^UltimateSDUpscale", "ssitu/ComfyUI_UltimateSDUpscale"),
    (r"\(Eff(icient|\.)", "jags111/efficiency-nodes-comfyui"),
    (r"^(Efficient|Eff\.) Loader", "jags111/efficiency-nodes-comfyui"),
    (r"^easy ", "yolain/ComfyUI-Easy-Use"),
    (r"^ttN ", "TinyTerra/ComfyUI_tinyterraNodes"),
    (r"^CR ", "Suzie1/ComfyUI_Comfyroll_CustomNodes"),
    (r"^Layer(Mask|Utility|Style|Color|Filter): ", "chflame163/ComfyUI_LayerStyle"),
    (r"\(segment anything\)$", "storyicon/comfyui_segment_anything"),
    (r"^WD14Tagger", "pythongosssss/ComfyUI-WD14-Tagger"),
    (r"^INPAINT_", "Acly/comfyui-inpaint-nodes"),
    (r"^ETN_", "Acly/comfyui-tooling-nodes"),
    (r"^Inpaint(Crop|Stitch)", "lquesada/ComfyUI-Inpaint-CropAndStitch"),
    (r"\[Crystools\]$", "crystian/ComfyUI-Crystools"),
    (r"^ReActor", "Gourieff/ComfyUI-ReActor"),
))
# fmt: on


def pack_of(class_type: str, properties: Mapping[str, object] | None = None) -> str | None:
    """The pack of a class, as a link to its repository or its name in the registry; None where nothing tells."""
    for key, form in (("aux_id", "https://github.com/{}"), ("cnr_id", "{} in the Comfy registry")):
        value = (properties or {}).get(key)
        if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,100}(/[\w.-]{1,100})?", value) and value != "comfy-core":
            return form.format(value)
    return next((f"https://github.com/{pack}" for sign, pack in _SIGNS if sign.search(class_type)), None)


def where_from(class_type: str, properties: Mapping[str, object] | None = None) -> str:
    """A sentence on how to get a class that is not there."""
    pack = pack_of(class_type, properties)
    source = f"the custom node pack it comes from, {pack}," if pack else "the custom node pack it comes from"
    return f"Correct the name, or add {source} to ComfyUI's custom_nodes folder."
