"""Which checkpoints can be trained on, by name and header alone."""

from __future__ import annotations

import pytest

from comfyui.errors import WeightsError
from comfyui.training.base_model import check_name, judge
from comfyui.training.parameters import TrainingParameters
from comfyui.training.tensors import Described, Header, read_header
from tests.parts import SD3, SD15, demo_files

PATH = "checkpoints/a.safetensors"
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CODER, TEXT = "first_stage_model.decoder.conv_in.weight", "cond_stage_model.transformer.x.weight"


def header(*names: str, dtype: str = "F16", context: int = 768) -> Header:
    shapes = {name: (320, context) if name == TO_K else (4, 4) for name in names}
    return Header({name: Described(dtype, shape, 0, 0) for name, shape in shapes.items()}, {}, 8)


def real_header(name: str) -> Header:
    with demo_files(*SD15, *SD3)[name].open("rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        return read_header(read, name)


@pytest.mark.parametrize(
    ("context", "kind"), [(768, "sd_v1"), (1024, "sd_v2"), (2048, "sdxl_base_v1-0"), (9, "unknown")]
)
def test_the_kind_is_told_by_the_width_of_the_text(context: int, kind: str) -> None:
    model = judge(header(TO_K, CODER, TEXT, context=context), PATH)
    assert model.kind == kind
    assert model.modules == {"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"}
    assert model.rank_numbers == 320 + context


def test_the_tiny_checkpoints_are_what_they_stand_for() -> None:
    assert judge(real_header("checkpoints/tiny-sd15.safetensors"), PATH).kind == "sd_v1"
    assert judge(real_header("checkpoints/tiny-sd3-notext.safetensors"), PATH).kind == "sd3"


@pytest.mark.parametrize(
    ("algorithm", "lora_dtype", "seen"),
    [("LoRA", "fp32", 1_720_148), ("LoRA", "bf16", 868_654), ("LoHa", "fp32", 3_354_140)],
)
def test_the_size_of_a_lora_is_known_before_it_is_trained(algorithm: str, lora_dtype: str, seen: int) -> None:
    """`seen` are the sizes of LoRAs that ComfyUI 0.30.0 trained on the checkpoint, their headers included."""
    model = judge(real_header("checkpoints/tiny-sd15.safetensors"), PATH)
    parameters = TrainingParameters(rank=8, algorithm=algorithm, lora_dtype=lora_dtype)
    assert model.lora_bytes(parameters) == pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (header(TO_K, TEXT), "it has no VAE"),
        (header(TO_K, CODER), "it has no text encoder"),
        (header(TO_K, CODER, TEXT, dtype="F8_E4M3"), "quantized (F8_E4M3)"),
        (header(TO_K, CODER, TEXT, dtype="I8"), "quantized (I8)"),
        (header(TO_K, CODER, TEXT, "model.diffusion_model.x.scale_weight"), "quantized (scaled fp8)"),
        (header("lora_unet_down_blocks_0.lora_up.weight"), "it is a LoRA itself"),
        (header("diffusion_model.x.lora_A.weight"), "it is a LoRA itself"),
        (header("input_blocks.0.0.weight"), "a diffusion model alone"),
        (header("double_blocks.0.img_attn.qkv.weight"), "a diffusion model alone"),
        (header("encoder.conv_in.weight"), "no whole checkpoint"),
    ],
)
def test_what_cannot_be_trained_on_is_named(found: Header, said: str) -> None:
    with pytest.raises(WeightsError) as caught:
        judge(found, PATH)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"No LoRA can be trained on {PATH}: ")


@pytest.mark.parametrize(("path", "said"), [("checkpoints/a.gguf", "GGUF"), ("checkpoints/a.ckpt", ".ckpt is not")])
def test_a_name_alone_may_be_enough(path: str, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        check_name(path)
