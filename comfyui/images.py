"""Still images, from what a node wrote to what a person asked for: format, quality, and the workflow inside or not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyui.metadata import PNG_SIGNATURE, our_names_hidden, without_metadata

STILL_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
PILLOW_FORMATS = {"webp": "WEBP", "jpg": "JPEG"}
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"}
PNG_DEPTH_AT = 24
"""Where a PNG file says how many bits a channel has (PNG specification, 5.2 and 11.2.2)."""
WHITE = (255, 255, 255)
EXIF_TAGS = {"prompt": 0x0110, "workflow": 0x010F}
"""Where ComfyUI keeps the two in a WebP file, and its browser interface finds them (comfy_api/latest/_ui.py)."""
MAX_EXIF_BYTES = 60_000
"""JPEG has room for 64 KiB (ITU-T T.81, B.1.1.4: a segment's length has 16 bits)."""


@dataclass(frozen=True)
class ImageOptions:
    """How still images are given back.

    `format` is "webp", "jpg" or "png"; `quality` is 0 to 100, unused for png; `embed_workflow` keeps the workflow in
    the file, as ComfyUI does, and counts for videos and sounds too; `run_folder` is the folder that we put before its
    filename_prefix, to be taken out.
    """

    format: str
    quality: int
    embed_workflow: bool = True
    run_folder: str = ""


def deliver_image(source: Path, target_stem: Path, options: ImageOptions) -> Path:
    """Write `source` to the target, as `options` say; returns the path, which has the new suffix.

    An image that cannot become that keeps its own format: the work is done, and a picture in another format is better
    than none. So it is with animations, images of 16 bits a channel, and sizes that a format has no room for.
    """
    suffix, wanted = source.suffix.lower(), f".{options.format}"
    if suffix != wanted and (suffix, wanted) != (".jpeg", ".jpg"):
        with suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(source) as image:
            if getattr(image, "n_frames", 1) == 1 and _is_eight_bit(image, source):
                return _convert(image, target_stem.with_name(target_stem.name + wanted), options)
    target = target_stem.with_name(target_stem.name + suffix)
    file = source.read_bytes()
    target.write_bytes(our_names_hidden(file, options.run_folder) if options.embed_workflow else without_metadata(file))
    return target


def _is_eight_bit(image: Image.Image, source: Path) -> bool:
    """Pillow opens a PNG of 16 bits a channel as "RGB" too, and halves them."""
    with source.open("rb") as stream:
        head = stream.read(PNG_DEPTH_AT + 1)
    return image.mode in EIGHT_BIT_MODES and not (head.startswith(PNG_SIGNATURE) and head[PNG_DEPTH_AT] > 8)


def _convert(image: Image.Image, target: Path, options: ImageOptions) -> Path:
    texts = _texts(image, options) if options.embed_workflow else {}
    # A profile of grey or CMYK does not fit the RGB that such an image becomes.
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    if options.format == "jpg":
        image = _without_alpha(image)
    else:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    # Pillow would write other texts that it found.
    image.info = {}
    if options.format == "png":
        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        image.save(target, "PNG", pnginfo=info, icc_profile=profile)
    else:
        exif = _exif(texts, options.format)
        image.save(target, PILLOW_FORMATS[options.format], quality=options.quality, exif=exif, icc_profile=profile)
    return target


def _texts(image: Image.Image, options: ImageOptions) -> dict[str, str]:
    """ComfyUI's texts in an image, by their names in a PNG."""
    exif = image.getexif()
    texts = {}
    for key, tag in EXIF_TAGS.items():
        text = image.info.get(key) or str(exif.get(tag, "")).removeprefix(f"{key}:")
        if text:
            hidden = our_names_hidden(str(text).encode(errors="replace"), options.run_folder)
            texts[key] = hidden.decode(errors="replace")
    return texts


def _exif(texts: dict[str, str], image_format: str) -> Image.Exif:
    exif = Image.Exif()
    for key, text in texts.items():
        exif[EXIF_TAGS[key]] = f"{key}:{text}"
    return Image.Exif() if image_format == "jpg" and len(exif.tobytes()) > MAX_EXIF_BYTES else exif


def _without_alpha(image: Image.Image) -> Image.Image:
    """JPEG has no alpha channel: what is transparent becomes white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")
