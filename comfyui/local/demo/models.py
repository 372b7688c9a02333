"""Recipes of tiny models that ComfyUI's own loaders take for the real thing.

A loader tells a model by the names and shapes of its tensors, so those follow the real models wherever it looks; the
rest is left out or as small as the format allows. The values are not trained. They are chosen so that a picture comes
out that is smooth, finite, and different for another seed, prompt, LoRA or input image:

  - a denoiser in these models is a residual network. With its main path set to "hand the input through", what it
    predicts as noise is its own input, normalised, so sampling removes everything;
  - a blurred copy of the input is kept out of that prediction, so smooth patches of colour survive and grow;
  - small random side branches add what the prompt, the time step and a LoRA have to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfyui.local.demo.coders import bell, clip_l, taesd
from comfyui.local.demo.layers import Layers

if TYPE_CHECKING:
    import torch

    from comfyui.local.demo.layers import Tensors

UNET_CHANNELS = 320
"""SD 1.x is told by 320 model channels ..."""
UNET_CONTEXT = 768
"""... and by a text context of 768 (comfy/model_detection.py, comfy/supported_models.py)."""
_TIME = 4 * UNET_CHANNELS
_GROUP = UNET_CHANNELS // 32
"""Channels of one group of the U-Net's GroupNorm, which always has 32 groups."""
_LATENT = 4
_SIGNED = 2 * _LATENT
"""Of each group's ten channels, four carry the latent, four its negative, two nothing."""

_HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256, UNET_CHANNELS)
"""Channels out of each layer of a ControlNet's hint block (comfy/cldm/cldm.py) ..."""
_HINT_STRIDES = (2, 4, 6)
"""... and the layers of it that halve width and height."""
_LINE_STRENGTH = 8.0
"""A line one pixel wide is an eighth of its 8x8 pixels."""

SD3_WIDTH = 64
"""SD 3 derives everything from its depth: width is 64 times the number of blocks, here one."""
SD3_LATENT = 16
SD3_GRID = 48
"""Side of the position table, in patches of 2x2 latents: pictures up to 768 pixels wide."""

_BLURRED_GROUPS = 12
"""Groups of the U-Net that carry a blurred latent; the other 20 carry it as it is."""
_SHAPE_STRENGTH = 0.6
"""How much of the blurred, normalised input a step leaves in the picture: its patches of colour. 0 gives fine grain."""


def sd15() -> Tensors:
    """A checkpoint of the SD 1.x kind: one-level U-Net, full-size CLIP-L text encoder, TAESD picture coder."""
    layers = Layers(seed=1)
    _unet(layers, "model.diffusion_model.")
    taesd(layers, "first_stage_model.", latent=_LATENT, scale=0.18215)
    clip_l(layers, "cond_stage_model.transformer.text_model.")
    return layers.tensors


def sd3_without_text() -> Tensors:
    """A checkpoint of the SD 3 kind with one block and no text encoder: 6 MB, quick, and deaf to the prompt."""
    import torch

    layers = Layers(seed=3)
    _mmdit(layers, "model.diffusion_model.")
    taesd(layers, "first_stage_model.", latent=SD3_LATENT, scale=1.5305)
    # Any key with this prefix makes the loader build SD 3's empty text encoder, which answers every prompt with zeros.
    layers.put("text_encoders.none", torch.zeros(1))
    return layers.tensors


def sd15_lora(seed: int = 5) -> Tensors:
    """A LoRA for `sd15` under kohya's names; it changes both the U-Net and the text encoder.

    Another seed is another LoRA, as loud as the first and with an effect of its own: enough to stack two.
    """
    layers = Layers(seed)
    unet = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
    width, context = UNET_CHANNELS, UNET_CONTEXT
    _lora_pair(layers, unet + "attn1_to_q", width, width, gain=0.6)
    _lora_pair(layers, unet + "attn1_to_v", width, width, gain=0.6)
    _lora_pair(layers, unet + "attn2_to_k", width, context, gain=0.6)
    _lora_pair(layers, unet + "attn2_to_v", width, context, gain=0.6)
    _lora_pair(layers, unet + "attn2_to_out_0", width, width, gain=0.6)
    _lora_pair(layers, unet + "ff_net_2", width, 4 * width, gain=0.6)
    for part in ("q", "v", "out"):
        _lora_pair(layers, f"lora_te_text_model_encoder_layers_0_self_attn_{part}_proj", context, context, gain=0.6)
    return layers.tensors


def sd3_lora() -> Tensors:
    """A LoRA for `sd3_without_text` under the generic names that ComfyUI itself writes."""
    layers = Layers(seed=6)
    block = "diffusion_model.joint_blocks.0.x_block."
    _lora_pair(layers, block + "attn.qkv", 3 * SD3_WIDTH, SD3_WIDTH, gain=2.0)
    _lora_pair(layers, block + "attn.proj", SD3_WIDTH, SD3_WIDTH, gain=2.0)
    _lora_pair(layers, block + "mlp.fc1", 4 * SD3_WIDTH, SD3_WIDTH, gain=2.0)
    _lora_pair(layers, block + "mlp.fc2", SD3_WIDTH, 4 * SD3_WIDTH, gain=2.0)
    return layers.tensors


def sd15_control() -> Tensors:
    """A ControlNet for `sd15` that draws the white lines of its hint, such as a Canny picture, into what is sampled.

    It has nothing to say of noise, prompt and time: those parts are zeros, which pass the hint on. The lines leave by
    the middle of the U-Net alone; there they reach the predicted noise and are not only one voice of many.
    """
    import torch

    layers = Layers(seed=4)  # no value is random here; every recipe has a number of its own
    width = UNET_CHANNELS
    layers.linear("time_embed.0", _TIME, width, gain=0.0)
    layers.linear("time_embed.2", _TIME, _TIME, gain=0.0)
    layers.taps("input_blocks.0.0", torch.zeros(width, _LATENT, 3, 3))
    _residual_block(layers, "input_blocks.1.0.", width, loudness=0.0)
    _attention_block(layers, "input_blocks.1.1.", loudness=0.0)
    _residual_block(layers, "middle_block.0.", width, loudness=0.0)
    for name in ("zero_convs.0.0", "zero_convs.1.0"):
        layers.conv(name, width, width, size=1, gain=0.0)
    _hint_block(layers, "input_hint_block.")
    layers.taps("middle_block_out.0", _draw_lines())
    return layers.tensors


def _lora_pair(layers: Layers, name: str, out: int, inputs: int, *, gain: float, rank: int = 4) -> None:
    import torch

    layers.linear(f"{name}.lora_down", rank, inputs, bias=False)
    # Loud enough that its effect is seen and not only measured, and not so loud that nothing else is.
    layers.linear(f"{name}.lora_up", out, rank, gain=gain, bias=False)
    layers.put(f"{name}.alpha", torch.tensor(float(rank)))  # alpha equal to the rank: strength 1 means 1


# --- SD 1.x U-Net ----------------------------------------------------------------------------------------------------


def _unet(layers: Layers, prefix: str) -> None:
    """One level, one residual block each way, one attention block, no middle: the least the detection accepts."""
    width = UNET_CHANNELS
    layers.linear(prefix + "time_embed.0", _TIME, width)
    layers.linear(prefix + "time_embed.2", _TIME, _TIME)
    layers.taps(prefix + "input_blocks.0.0", _spread_latent())
    _residual_block(layers, prefix + "input_blocks.1.0.", width)
    _attention_block(layers, prefix + "input_blocks.1.1.")
    for index in range(2):  # each joins the running value with one saved on the way in, hence twice the width
        _residual_block(layers, f"{prefix}output_blocks.{index}.0.", 2 * width)
    layers.norm(prefix + "out.0", width)
    layers.taps(prefix + "out.2", _gather_latent())


def _signed_channels() -> list[tuple[int, int, float, bool]]:
    """(U-Net channel, latent channel, sign, blurred) of every channel that carries something."""
    carried = []
    for channel in range(UNET_CHANNELS):
        group, slot = divmod(channel, _GROUP)
        if slot < _SIGNED:
            carried.append((channel, slot % _LATENT, 1.0 if slot < _LATENT else -1.0, group < _BLURRED_GROUPS))
    return carried


def _spread_latent() -> torch.Tensor:
    """First convolution: every group gets the latent and its negative, so each group's mean is zero.

    GroupNorm then only divides by the latent's size and shifts nothing. For blurred groups that means: however little
    a blur leaves of pure noise, it comes out at full size.
    """
    import torch

    weight = torch.zeros(UNET_CHANNELS, _LATENT, 3, 3)
    for channel, latent, sign, blurred in _signed_channels():
        weight[channel, latent] = sign * (bell() if blurred else _point())
    return weight


def _gather_latent() -> torch.Tensor:
    """Last convolution, after GroupNorm and SiLU: predict as noise the latent less its blurred self.

    silu(z) - silu(-z) = z, so the difference of a pair is linear again. Eight of ten channels carry something, which
    makes GroupNorm's divisor sqrt(0.8) times the latent's size; the groups of a kind are averaged.
    """
    import torch

    size = (_SIGNED / _GROUP) ** 0.5
    weight = torch.zeros(_LATENT, UNET_CHANNELS, 3, 3)
    for channel, latent, sign, blurred in _signed_channels():
        if blurred:
            weight[latent, channel] = -sign * size * _SHAPE_STRENGTH / _BLURRED_GROUPS * bell()
        else:
            weight[latent, channel] = sign * size / (32 - _BLURRED_GROUPS) * _point()
    return weight


def _point() -> torch.Tensor:
    """The 3x3 kernel that changes nothing."""
    import torch

    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1.0
    return kernel


def _residual_block(layers: Layers, prefix: str, inputs: int, *, loudness: float = 1.0) -> None:
    """Out = in + a little noise of (in, time). Where `inputs` is double, the first half, the running value, stays.

    `loudness` 0 leaves out = in.
    """
    import torch

    width = UNET_CHANNELS
    layers.norm(prefix + "in_layers.0", inputs)
    layers.conv(prefix + "in_layers.2", width, inputs, gain=0.5 * loudness)
    layers.linear(prefix + "emb_layers.1", width, _TIME, gain=0.3 * loudness)
    layers.norm(prefix + "out_layers.0", width)
    layers.conv(prefix + "out_layers.3", width, width, gain=0.08 * loudness)
    if inputs != width:
        keep_first = torch.eye(width, inputs).reshape(width, inputs, 1, 1)
        layers.taps(prefix + "skip_connection", keep_first)


def _attention_block(layers: Layers, prefix: str, *, loudness: float = 1.0) -> None:
    """The one place the prompt enters: cross attention, turned up so that words show.

    Self attention and the feed-forward part follow the noise from point to point and would only roughen the picture:
    they are turned down. `loudness` 0 leaves out = in.
    """
    width = UNET_CHANNELS
    layers.norm(prefix + "norm", width)
    layers.conv(prefix + "proj_in", width, width, size=1, gain=loudness)
    layers.conv(prefix + "proj_out", width, width, size=1, gain=0.1 * loudness)
    block = prefix + "transformer_blocks.0."
    for name, context, value in (("attn1.", width, 0.3), ("attn2.", UNET_CONTEXT, 8.0)):
        layers.linear(block + name + "to_q", width, width, gain=loudness, bias=False)
        layers.linear(block + name + "to_k", width, context, gain=loudness, bias=False)
        layers.linear(block + name + "to_v", width, context, gain=value * loudness, bias=False)
        layers.linear(block + name + "to_out.0", width, width, gain=loudness)
    layers.linear(block + "ff.net.0.proj", 8 * width, width, gain=loudness)
    layers.linear(block + "ff.net.2", width, 4 * width, gain=0.3 * loudness)
    for name in ("norm1", "norm2", "norm3"):
        layers.norm(block + name, width)


# --- SD 1.x ControlNet -----------------------------------------------------------------------------------------------


def _hint_block(layers: Layers, prefix: str) -> None:
    """Grey of the hint, averaged over 8x8 pixels, in the first of 320 channels; its negative in the second.

    A SiLU follows every layer but the last. silu(z) - silu(-z) = z, so a pair of channels carries a number past it
    unbent: each layer takes the difference of the pair before it, and makes a new pair.
    """
    import torch

    average = torch.zeros(3, 3)
    average[1:, 1:] = 0.25
    widths = (3, *_HINT_WIDTHS)
    for layer, (inputs, out) in enumerate(zip(widths, _HINT_WIDTHS, strict=False)):
        pair = torch.zeros(out, inputs, 3, 3)
        kernel = average if layer in _HINT_STRIDES else _point()
        for channel, sign in enumerate((1.0, -1.0)):
            if layer == 0:
                pair[channel, :] = sign / 3 * kernel
            else:
                pair[channel, 0], pair[channel, 1] = sign * kernel, -sign * kernel
        layers.taps(f"{prefix}{2 * layer}", pair)


def _draw_lines() -> torch.Tensor:
    """Convolution from the hint's pair to the U-Net's channels: less predicted noise, so more red, green and blue.

    The fourth latent is no colour. Only channels that carry the latent as it is are used: from the others a step would
    take away, blurred, what it adds here.
    """
    import torch

    weight = torch.zeros(UNET_CHANNELS, UNET_CHANNELS, 1, 1)
    for channel, latent, sign, blurred in _signed_channels():
        if latent < 3 and not blurred:
            weight[channel, 0] = -sign * _LINE_STRENGTH
    return weight


# --- SD 3 transformer ------------------------------------------------------------------------------------------------


def _mmdit(layers: Layers, prefix: str) -> None:
    """One joint block between two hand-set ends: a patch goes in as 64 numbers and comes out as the same 64."""
    import torch

    width = SD3_WIDTH
    values = 4 * SD3_LATENT  # one patch: 2x2 latents
    # The last layer gives its values as (row, column, channel) while the convolution reads (channel, row, column):
    # spread the patch over the width in the last layer's order, then the identity brings every value home.
    into_patches = torch.eye(values).reshape(values, 2, 2, SD3_LATENT).permute(0, 3, 1, 2).contiguous()
    layers.taps(prefix + "x_embedder.proj", into_patches)
    layers.put(prefix + "pos_embed", torch.zeros(1, SD3_GRID * SD3_GRID, width))
    layers.linear(prefix + "t_embedder.mlp.0", width, 256)
    layers.linear(prefix + "t_embedder.mlp.2", width, width)
    layers.linear(prefix + "y_embedder.mlp.0", width, 2048)
    layers.linear(prefix + "y_embedder.mlp.2", width, width)
    layers.linear(prefix + "context_embedder", width, 4096, gain=3.0)
    context, image = prefix + "joint_blocks.0.context_block.", prefix + "joint_blocks.0.x_block."
    # The last block, and this is the last, has no output for the text: only what attention needs of it.
    layers.linear(context + "adaLN_modulation.1", 2 * width, width)
    layers.linear(context + "attn.qkv", 3 * width, width)
    layers.linear(image + "adaLN_modulation.1", 6 * width, width)
    layers.linear(image + "attn.qkv", 3 * width, width)
    layers.linear(image + "attn.proj", width, width)
    layers.linear(image + "mlp.fc1", 4 * width, width)
    layers.linear(image + "mlp.fc2", width, 4 * width)
    layers.linear(prefix + "final_layer.adaLN_modulation.1", 2 * width, width, gain=0.3)
    # As in the U-Net, what is smooth is kept out of the predicted noise: here the mean over the patch, taken away
    # twice, so that it grows from step to step.
    patch_mean = torch.eye(SD3_LATENT).repeat(4, 4) / 4
    layers.taps(prefix + "final_layer.linear", torch.eye(values, width) - 2 * patch_mean)
