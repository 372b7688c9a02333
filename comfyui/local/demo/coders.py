"""The two ends of a tiny model: the coder between pictures and latents, and the text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfyui.local.demo.layers import Layers

if TYPE_CHECKING:
    import torch

_VAE_WIDTH = 64


def bell() -> torch.Tensor:
    """A 3x3 blur."""
    import torch

    row = torch.tensor([0.25, 0.5, 0.25])
    return torch.outer(row, row)


def taesd(layers: Layers, prefix: str, *, latent: int, scale: float) -> None:
    """TAESD (comfy/taesd/taesd.py) set by hand: encoding averages 8x8 pixels, decoding smooths them back.

    The first three latent channels are red, green and blue, from -3 (none) to 3 (full): the decoder starts by bending
    latents into that range, so no picture is ever burnt out. `scale` is the model's own latent scale, undone here.
    """
    import torch

    colours = range(3)
    layers.put(prefix + "vae_scale", torch.tensor(scale))
    layers.put(prefix + "vae_shift", torch.tensor(0.0))

    encoder, decoder = prefix + "taesd_encoder.", prefix + "taesd_decoder."
    copy_in = torch.zeros(_VAE_WIDTH, 3, 3, 3)
    to_latent = torch.zeros(latent, _VAE_WIDTH, 3, 3)
    to_latent_bias = torch.zeros(latent)
    for c in colours:
        copy_in[c, c, 1, 1] = 1.0
        to_latent[c, c, 1, 1] = 6.0  # pixels are 0 to 1 here, and TAESD's ReLUs keep them: nothing is lost
        to_latent_bias[c] = -3.0
    # A stride-2 kernel over a 2x2 window is an average; three of them make one latent out of 8x8 pixels.
    average = torch.zeros(3, 3)
    average[1:, 1:] = 0.25
    layers.taps(encoder + "0", copy_in)
    for index in (2, 6, 10):
        layers.put(f"{encoder}{index}.weight", _per_channel(average))
    for index in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        _idle_block(layers, f"{encoder}{index}")
    layers.taps(encoder + "14", to_latent, to_latent_bias)

    # Decoder blocks end in a ReLU, which would cut off all that is below zero: each colour travels as two channels,
    # its positive and its negative part, until the last layer takes their difference.
    split = torch.zeros(_VAE_WIDTH, latent, 3, 3)
    join = torch.zeros(3, _VAE_WIDTH, 3, 3)
    for c in colours:
        for channel, sign in ((c, 1.0), (c + 3, -1.0)):
            split[channel, c, 1, 1] = sign
            split[channel, 3, 1, 1] = sign * 0.2 * (c - 1)  # the fourth latent warms or cools the picture
            join[c, channel, 1, 1] = sign / 6.0
    # After each doubling (nearest neighbour, hence steps) a small blur: three of them give soft edges.
    layers.taps(decoder + "1", split)
    for index in (7, 12, 17):
        layers.put(f"{decoder}{index}.weight", _per_channel(bell()))
    for index in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        _idle_block(layers, f"{decoder}{index}")
    layers.taps(decoder + "19", join, torch.full((3,), 0.5))


def _per_channel(kernel: torch.Tensor) -> torch.Tensor:
    """A convolution that applies one kernel to each channel by itself."""
    import torch

    weight = torch.zeros(_VAE_WIDTH, _VAE_WIDTH, 3, 3)
    channels = torch.arange(_VAE_WIDTH)
    weight[channels, channels] = kernel
    return weight


def _idle_block(layers: Layers, name: str) -> None:
    """A residual block that adds nothing."""
    for index in (0, 2, 4):
        layers.conv(f"{name}.conv.{index}", _VAE_WIDTH, _VAE_WIDTH, gain=0.0)


def clip_l(layers: Layers, prefix: str) -> None:
    """CLIP-L at its full size, which loaders insist on. Random word vectors alone make prompts differ.

    Only the first layer has weights: there words see their neighbours, and a LoRA finds something to change. The other
    eleven are zeros, which a residual layer passes by.
    """
    width, layer_count = 768, 12
    layers.put(prefix + "embeddings.token_embedding.weight", layers.noise(49408, width, scale=1.0))
    layers.put(prefix + "embeddings.position_embedding.weight", layers.noise(77, width, scale=0.3))
    for index in range(layer_count):
        layer, gain = f"{prefix}encoder.layers.{index}.", 0.3 if index == 0 else 0.0
        for part in ("q", "k", "v", "out"):
            layers.linear(f"{layer}self_attn.{part}_proj", width, width, gain=gain)
        layers.linear(layer + "mlp.fc1", 4 * width, width, gain=gain)
        layers.linear(layer + "mlp.fc2", width, 4 * width, gain=gain)
        layers.norm(layer + "layer_norm1", width)
        layers.norm(layer + "layer_norm2", width)
    layers.norm(prefix + "final_layer_norm", width)
