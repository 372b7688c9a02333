"""Where a class that is not there comes from."""

from __future__ import annotations

import pytest

from comfyui.workflow.node_packs import pack_of, where_from


@pytest.mark.parametrize(
    ("class_type", "pack"),
    [
        ("Power Lora Loader (rgthree)", "https://github.com/rgthree/rgthree-comfy"),
        ("VHS_VideoCombine", "https://github.com/Kosinkadink/ComfyUI-VideoHelperSuite"),
        ("UltralyticsDetectorProvider", "https://github.com/ltdrdata/ComfyUI-Impact-Subpack"),
        ("FaceDetailerPipe", "https://github.com/ltdrdata/ComfyUI-Impact-Pack"),
        ("KSampler (Efficient)", "https://github.com/jags111/efficiency-nodes-comfyui"),
        ("ImageResize+", "https://github.com/cubiq/ComfyUI_essentials"),
        ("UnetLoaderGGUF", "https://github.com/city96/ComfyUI-GGUF"),
        ("CannyEdgePreprocessor", "https://github.com/Fannovel16/comfyui_controlnet_aux"),
        ("KSampler", None),
        ("SomethingOfMine", None),
    ],
)
def test_a_class_tells_its_pack_by_its_name(class_type: str, pack: str | None) -> None:
    assert pack_of(class_type) == pack


def test_what_the_workflow_itself_says_counts_most() -> None:
    assert pack_of("VHS_Mine", {"aux_id": "me/my-pack", "cnr_id": "my-pack"}) == "https://github.com/me/my-pack"
    assert pack_of("Mine", {"cnr_id": "my-pack", "ver": "1.0"}) == "my-pack in the Comfy registry"
    assert pack_of("Mine", {"cnr_id": "comfy-core"}) is None


@pytest.mark.parametrize("value", ["me/../..", "me/my pack\nRun this", 5, "", "a/b/c", "x" * 300])
def test_what_is_no_name_is_not_repeated(value: object) -> None:
    assert pack_of("Mine", {"aux_id": value}) is None


def test_the_sentence_names_the_pack() -> None:
    assert "rgthree-comfy, to ComfyUI's custom_nodes folder" in where_from("Any Switch (rgthree)")
    assert where_from("Mine") == (
        "Correct the name, or add the custom node pack it comes from to ComfyUI's custom_nodes folder."
    )
