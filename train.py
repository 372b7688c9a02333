"""Cog inputs → comfyui.weights → one verified tar. Thin: everything that can go wrong is handled, and tested, in comfyui/.

With pictures, comfyui.training trains a LoRA on the way, which goes into the same tar. On Replicate the tar becomes the
weights of a new version of the model: COG_WEIGHTS of its predictor.
"""

from pathlib import Path as FilePath
from threading import Event
from typing import Optional

from cog import BaseModel, Input, Path, Secret

from comfyui.cog_inputs import explain_unknown_inputs
from comfyui.scratch import new_output_folder
from comfyui.settings import Settings
from comfyui.threads import in_this_context, in_thread
from comfyui.training.call import TrainingCall, check_no_pictures, train_and_bake
from comfyui.training.parameters import TrainingParameters
from comfyui.weights.bake.bake import bake
from comfyui.weights.listener import PlainLines
from comfyui.weights.manifest import Manifest
from comfyui.weights.sources import Tokens


def say(line: str) -> None:
    """A line for the training's log."""
    print(line, flush=True)


class TrainingOutput(BaseModel):
    """What a training gives back, in the form that Replicate expects."""

    weights: Path


@explain_unknown_inputs
async def train(
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
    training_images: Optional[Path] = Input(
        description="A zip or tar of pictures to train a LoRA from, with captions or without. The LoRA is trained on a checkpoint of this training and baked beside it. All inputs below are for it alone.",
        default=None,
    ),
    lora_name: str = Input(
        description="File name of the trained LoRA, without its ending.",
        default="my_lora",
    ),
    trigger_word: str = Input(
        description="The word that shall call the LoRA's subject: it is put into every caption, and is the caption where there is none.",
        default="",
    ),
    base_checkpoint: Optional[str] = Input(
        description="File name of the checkpoint to train on, where several are given. The first, unless you say otherwise.",
        default=None,
    ),
    steps: int = Input(
        description="Steps of the optimizer. Some hundreds to a few thousand make a LoRA; ComfyUI's default is only enough to see that it works.",
        ge=1,
        le=100000,
        default=16,
    ),
    learning_rate: float = Input(
        description="How far each step goes. Too large a number makes noise of the pictures.",
        ge=0.0000001,
        le=1.0,
        default=0.0005,
    ),
    rank: int = Input(
        description="Rank of the LoRA's layers: what it can hold, and its size.", ge=1, le=128, default=8
    ),
    batch_size: int = Input(
        description="Pictures that are trained on at once. ComfyUI computes each of them with the captions of all, so that 4 take the work of 16: grad_accumulation_steps is cheaper.",
        ge=1,
        le=10000,
        default=1,
    ),
    grad_accumulation_steps: int = Input(
        description="Batches for each step of the optimizer: as good as a larger batch, in no more memory.",
        ge=1,
        le=1024,
        default=1,
    ),
    optimizer: str = Input(
        description="How the steps are made.", choices=["AdamW", "Adam", "SGD", "RMSprop"], default="AdamW"
    ),
    loss_function: str = Input(
        description="What is made smaller by training.", choices=["MSE", "L1", "Huber", "SmoothL1"], default="MSE"
    ),
    algorithm: str = Input(
        description="Form of the LoRA's layers.", choices=["LoRA", "LoHa", "LoKr", "OFT"], default="LoRA"
    ),
    training_dtype: str = Input(
        description="Type that is computed in; none is the checkpoint's own.",
        choices=["bf16", "fp32", "none"],
        default="bf16",
    ),
    lora_dtype: str = Input(description="Type of the LoRA's numbers.", choices=["bf16", "fp32"], default="bf16"),
    gradient_checkpointing: bool = Input(
        description="Compute some things twice, to train in less GPU memory.", default=True
    ),
    resolution: int = Input(
        description="Side, in pixels, of the square whose area each picture gets: 512 for SD 1.5, 1024 for SDXL.",
        ge=64,
        le=2048,
        default=512,
    ),
    fit: str = Input(
        description="How pictures of other shapes are treated: buckets keeps nearly their shape, crop cuts the middle square out.",
        choices=["buckets", "crop"],
        default="buckets",
    ),
    seed: int = Input(
        description="The same seed, pictures and parameters give the same LoRA on the same kind of machine.",
        ge=0,
        default=0,
    ),
    existing_lora: Optional[str] = Input(
        description="Link to a LoRA that ComfyUI trained on such a checkpoint before, to train it further.",
        default=None,
    ),
    sample_prompt: str = Input(
        description="Prompt of the pictures that show what the LoRA has learnt. The trigger word, unless you say otherwise.",
        default="",
    ),
    sample_every: int = Input(
        description="Make a picture with the LoRA so far after each so many steps, too; 0 makes them at the end alone. The optimizer begins anew each time: better hundreds of steps than tens.",
        ge=0,
        le=100000,
        default=0,
    ),
    timeout: int = Input(  # noqa: ASYNC109 - an input, by the name that predict.py has it
        description="Stop the training of the LoRA after this many seconds; 0 is no limit.", ge=0, default=86400
    ),
    stall_timeout: int = Input(
        description="Stop it when ComfyUI gives no sign of life for this many seconds; 0 is no limit.",
        ge=0,
        default=1800,
    ),
) -> TrainingOutput:
    """Fetch the weights, prove each one, train a LoRA if there are pictures, and bake all into one tar."""
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
    report = in_this_context(say)
    if training_images is None:
        check_no_pictures(
            trigger_word=trigger_word,
            base_checkpoint=base_checkpoint,
            existing_lora=existing_lora,
            sample_prompt=sample_prompt,
        )

        def work(stop: Event) -> Manifest:
            return bake(lists, out, settings, tokens, PlainLines(report), allow_pickle=allow_pickle, stop=stop)

    else:
        call = TrainingCall(
            # Without Docker a local path arrives as a plain string.
            images=FilePath(training_images),
            parameters=TrainingParameters(
                lora_name=lora_name,
                trigger_word=trigger_word,
                steps=steps,
                learning_rate=learning_rate,
                rank=rank,
                batch_size=batch_size,
                grad_accumulation_steps=grad_accumulation_steps,
                optimizer=optimizer,
                loss_function=loss_function,
                algorithm=algorithm,
                training_dtype=training_dtype,
                lora_dtype=lora_dtype,
                gradient_checkpointing=gradient_checkpointing,
                resolution=resolution,
                fit=fit,
                seed=seed,
                sample_prompt=sample_prompt,
                sample_every=sample_every,
            ),
            base_checkpoint=base_checkpoint or None,
            existing_lora=existing_lora or None,
            timeout=timeout,
            stall_timeout=stall_timeout,
        )

        def work(stop: Event) -> Manifest:
            return train_and_bake(call, lists, out, settings, tokens, report, say, stop, allow_pickle=allow_pickle)

    await in_thread(work)
    # Cog answers with the bytes of a Path, as base64; who shares our disk (WEIGHTS_OUT) wants only to know where.
    return TrainingOutput(weights=str(out) if settings.weights_out else Path(out))  # type: ignore[call-arg]
