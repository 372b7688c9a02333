"""Where a weight file may lie: ComfyUI's model folders, the training inputs that fill them, and safe paths in them.

Pure. Every path that comes from outside (a manifest, a tar, a server's file name) passes `check_member_path`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType

from comfyui.errors import WeightsError

# fmt: off
MODEL_FOLDERS = frozenset(
    {
        # ComfyUI's own (folder_paths.py), old names included; its "custom_nodes" and "datasets" hold no weights.
        "checkpoints", "configs", "loras", "vae", "text_encoders", "clip", "diffusion_models", "unet", "clip_vision",
        "style_models", "embeddings", "diffusers", "vae_approx", "controlnet", "t2i_adapter", "gligen",
        "upscale_models", "latent_upscale_models", "hypernetworks", "photomaker", "classifiers", "model_patches",
        "audio_encoders", "background_removal", "frame_interpolation", "geometry_estimation", "optical_flow",
        "detection",
        # Folders that widely used custom nodes add.
        "animatediff_models", "animatediff_motion_lora", "ipadapter", "insightface", "facerestore_models", "sams",
        "ultralytics",
    }
)
# fmt: on
"""Names of the folders under ComfyUI's models folder that may receive weights."""

TRAINING_FOLDERS = frozenset({"training"})
"""Of a tar, the folder of what a LoRA training left beside its LoRA (losses, samples): no weights, never restored."""

TRAINING_INPUTS: Mapping[str, str] = MappingProxyType(
    {
        "checkpoints": "checkpoints",
        "loras": "loras",
        "upscale_models": "upscale_models",
        "embedding_models": "embeddings",
        "controlnets": "controlnet",
        "animatediff_models": "animatediff_models",
        "animatediff_loras": "animatediff_motion_lora",
        "vaes": "vae",
        "diffusion_models": "diffusion_models",
        "text_encoders": "text_encoders",
        "clip_vision": "clip_vision",
        "style_models": "style_models",
        "gligen": "gligen",
        "hypernetworks": "hypernetworks",
        "photomaker": "photomaker",
        "classifiers": "classifiers",
        "model_patches": "model_patches",
        "audio_encoders": "audio_encoders",
        "latent_upscale_models": "latent_upscale_models",
        "vae_approx": "vae_approx",
        "background_removal": "background_removal",
        "frame_interpolation": "frame_interpolation",
        "geometry_estimation": "geometry_estimation",
        "optical_flow": "optical_flow",
        "detection": "detection",
    }
)
"""Inputs of train() in the order they are baked, each with its folder, one input for each folder.

The names are fofr/any-comfyui-workflow's where it has one, and the folder's own otherwise. ComfyUI's "diffusers" (whole
folders, not files) and "configs" (YAML, not weights) have none; "clip", "unet" and "t2i_adapter" are older names of
folders that are there.
"""

_LOADERS: Mapping[str, str] = MappingProxyType(
    {
        "checkpoints": "CheckpointLoaderSimple.ckpt_name",
        "loras": "LoraLoader.lora_name",
        "upscale_models": "UpscaleModelLoader.model_name",
        "controlnet": "ControlNetLoader.control_net_name",
        "vae": "VAELoader.vae_name",
        "diffusion_models": "UNETLoader.unet_name",
        "text_encoders": "CLIPLoader.clip_name",
        "clip_vision": "CLIPVisionLoader.clip_name",
    }
)

MAX_PART_BYTES = 255
"""Longest file or folder name, in bytes of UTF-8: the limit of Linux's, macOS's and Windows' usual file systems."""
MAX_PATH_BYTES = 1024
"""Longest whole path, in bytes of UTF-8; keeps a tar's long-name record small."""

_WINDOWS_FORBIDDEN = re.compile(r'[<>:"|?*\\]')
# Control and format characters (bidi overrides among them), lone surrogates, line and paragraph separators.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def check_member_path(path: str, folders: Collection[str] = MODEL_FOLDERS) -> PurePosixPath:
    """Return `path` as a path relative to the models folder, or raise WeightsError that says what is wrong with it.

    A good path names one of `folders` first and a file in it, and could be written on any disk.
    """
    parts = path.split("/")
    fault = None
    if len(parts) < 2:
        fault = "it must be a model folder and a file name, as in loras/my_lora.safetensors"
    elif len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        fault = f"it is longer than {MAX_PATH_BYTES} bytes"
    else:
        fault = next(filter(None, map(_part_fault, parts)), None)
        if fault is None and parts[0] not in folders:
            fault = f"{parts[0]!r} is no {'model folder of ComfyUI' if folders is MODEL_FOLDERS else 'folder for it'}"
    if fault is not None:
        raise WeightsError(f"The path {path[:300]!r} cannot be used for weights: {fault}.", path=path, seen=path)
    return PurePosixPath(path)


def _part_fault(part: str) -> str | None:
    if not part:
        return "it has an empty part (a slash too many)"
    if part.startswith("."):
        return "no part of it may start with a dot"
    if part[-1] in ". ":
        return "no part of it may end with a dot or a space"
    if any(unicodedata.category(char) in _INVISIBLE_CATEGORIES for char in part):
        return "it has a control character or another invisible one"
    if _WINDOWS_FORBIDDEN.search(part):
        return 'it has one of the characters \\ : * ? " < > |'
    if len(part.encode()) > MAX_PART_BYTES:
        return f"one part is longer than {MAX_PART_BYTES} bytes"
    return None


def safe_file_name(text: str) -> str:
    """Reduce a name given by a server or a URL to a base name that `check_member_path` accepts; "" if none is left."""
    base = unicodedata.normalize("NFC", re.split(r"[/\\]", text)[-1])
    visible = "".join(char for char in base if unicodedata.category(char) not in _INVISIBLE_CATEGORIES)
    name = _WINDOWS_FORBIDDEN.sub("_", visible).strip(" ").lstrip(". ").rstrip(". ")
    if len(name.encode()) <= MAX_PART_BYTES:
        return name
    # The extension says which check a file gets, so the cut is made before it.
    suffix = PurePosixPath(name).suffix if len(PurePosixPath(name).suffix.encode()) < 20 else ""
    stem = name.encode()[: MAX_PART_BYTES - len(suffix.encode())].decode(errors="ignore")
    return stem.rstrip(". ") + suffix


def path_key(path: str) -> str:
    """What two paths share when some disk (macOS, Windows) would hold them as one file."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def workflow_use(path: str) -> str:
    """One plain line that says how a workflow names the weights at `path`."""
    folder, _, name = path.partition("/")
    if folder == "embeddings":
        return f"{path}: write embedding:{name.rpartition('.')[0] or name} in a prompt"
    if folder in _LOADERS:
        return f'{path}: {_LOADERS[folder]} = "{name}"'
    return f'{path}: "{name}" in the node that loads from {folder}'
