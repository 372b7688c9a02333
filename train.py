"""Cog inputs → comfyui.weights → one verified tar. Thin: everything that can go wrong is handled, and tested, in comfyui/.

On Replicate the tar becomes the weights of a new version of the model: COG_WEIGHTS of its predictor.
"""

from typing import Optional

from cog import BaseModel, Input, Path, Secret

from comfyui.cog_inputs import explain_unknown_inputs
from comfyui.scratch import new_output_folder
from comfyui.settings import Settings
from comfyui.weights.bake import bake
from comfyui.weights.listener import PlainLines
from comfyui.weights.sources import Tokens


def say(line: str) -> None:
    """A line for the training's log."""
    print(line, flush=True)


class TrainingOutput(BaseModel):
    """What a training gives back, in the form that Replicate expects."""

    weights: Path


@explain_unknown_inputs
def train(
    checkpoints: Optional[str] = Input(
        description="Links to checkpoints, one on each line, for example https://huggingface.co/me/models/resolve/main/my.safetensors",
        default=None,
    ),
    loras: Optional[str] = Input(description="Links to LoRAs, one on each line.", default=None),
    upscale_models: Optional[str] = Input(description="Links to upscale models, one on each line.", default=None),
    embedding_models: Optional[str] = Input(
        description="Links to embeddings (textual inversions), one on each line.", default=None
    ),
    controlnets: Optional[str] = Input(description="Links to ControlNets, one on each line.", default=None),
    animatediff_models: Optional[str] = Input(
        description="Links to AnimateDiff motion models, one on each line.", default=None
    ),
    animatediff_loras: Optional[str] = Input(
        description="Links to AnimateDiff motion LoRAs, one on each line.", default=None
    ),
    vaes: Optional[str] = Input(description="Links to VAEs, one on each line.", default=None),
    diffusion_models: Optional[str] = Input(
        description="Links to diffusion models without text encoder and VAE (UNet, DiT), one on each line.",
        default=None,
    ),
    text_encoders: Optional[str] = Input(
        description="Links to text encoders (CLIP, T5), one on each line.", default=None
    ),
    clip_vision: Optional[str] = Input(description="Links to CLIP vision models, one on each line.", default=None),
    style_models: Optional[str] = Input(description="Links to style models, one on each line.", default=None),
    gligen: Optional[str] = Input(description="Links to GLIGEN models, one on each line.", default=None),
    hypernetworks: Optional[str] = Input(description="Links to hypernetworks, one on each line.", default=None),
    photomaker: Optional[str] = Input(description="Links to PhotoMaker models, one on each line.", default=None),
    classifiers: Optional[str] = Input(description="Links to classifiers, one on each line.", default=None),
    model_patches: Optional[str] = Input(description="Links to model patches, one on each line.", default=None),
    audio_encoders: Optional[str] = Input(description="Links to audio encoders, one on each line.", default=None),
    latent_upscale_models: Optional[str] = Input(
        description="Links to latent upscale models, one on each line.", default=None
    ),
    vae_approx: Optional[str] = Input(
        description="Links to approximate VAEs for previews (TAESD), one on each line.", default=None
    ),
    background_removal: Optional[str] = Input(
        description="Links to background removal models, one on each line.", default=None
    ),
    frame_interpolation: Optional[str] = Input(
        description="Links to frame interpolation models, one on each line.", default=None
    ),
    geometry_estimation: Optional[str] = Input(
        description="Links to geometry estimation models, one on each line.", default=None
    ),
    optical_flow: Optional[str] = Input(description="Links to optical flow models, one on each line.", default=None),
    detection: Optional[str] = Input(description="Links to detection models, one on each line.", default=None),
    huggingface_read_token: Optional[Secret] = Input(
        description="Read token of Hugging Face, for private or gated repos. Sent to Hugging Face only, never logged.",
        default=None,
    ),
    civitai_api_token: Optional[Secret] = Input(
        description="API token of Civitai, for files that need a login. Sent to Civitai only, never logged.",
        default=None,
    ),
    allow_pickle: bool = Input(
        description="Take .ckpt, .pt, .pth and .bin files too. Such files can run any code when they are loaded: turn this on only for sources you trust.",
        default=False,
    ),
) -> TrainingOutput:
    """Fetch the weights, prove each one, and bake them into one tar."""
    settings = Settings.from_environ()
    lists = {
        "checkpoints": checkpoints,
        "loras": loras,
        "upscale_models": upscale_models,
        "embedding_models": embedding_models,
        "controlnets": controlnets,
        "animatediff_models": animatediff_models,
        "animatediff_loras": animatediff_loras,
        "vaes": vaes,
        "diffusion_models": diffusion_models,
        "text_encoders": text_encoders,
        "clip_vision": clip_vision,
        "style_models": style_models,
        "gligen": gligen,
        "hypernetworks": hypernetworks,
        "photomaker": photomaker,
        "classifiers": classifiers,
        "model_patches": model_patches,
        "audio_encoders": audio_encoders,
        "latent_upscale_models": latent_upscale_models,
        "vae_approx": vae_approx,
        "background_removal": background_removal,
        "frame_interpolation": frame_interpolation,
        "geometry_estimation": geometry_estimation,
        "optical_flow": optical_flow,
        "detection": detection,
    }
    tokens = Tokens(
        huggingface=huggingface_read_token.get_secret_value() if huggingface_read_token else None,
        civitai=civitai_api_token.get_secret_value() if civitai_api_token else None,
    )
    out = settings.weights_out or new_output_folder(settings.data_dir / "trainings") / "weights.tar"
    bake(lists, out, settings, tokens, PlainLines(say), allow_pickle=allow_pickle)
    # Cog answers with the bytes of a Path, as base64; who shares our disk (WEIGHTS_OUT) wants only to know where.
    return TrainingOutput(weights=str(out) if settings.weights_out else Path(out))  # type: ignore[call-arg]
