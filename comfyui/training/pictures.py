"""One picture as people have it (a photo, a drawing, a scan), made into plain RGB pixels, upright, without metadata.

Rotation that a camera only noted (EXIF) is done, transparency becomes white, other colour modes and 16 bits a channel
become 8-bit RGB. Colour profiles are not applied: as in ComfyUI and sd-scripts, pixels are taken for sRGB.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from comfyui.errors import TrainingInputError
from comfyui.training.remarks import problem
from comfyui.training.source_files import REFUSED_SUFFIXES, SourceFile

PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Nothing else is tried on content from outside. JPEG stands for MPO too, as Pillow calls one that holds several."""
MAX_FILE_BYTES = 512 * 1024**2
MAX_PIXELS = 89_478_485
"""From here on Pillow warns of a decompression bomb. Trainings are at 512 to 1024 pixels a side."""
WHITE = (255, 255, 255, 255)
HEIF_MARK = b"ftyp"
"""At byte 4 of HEIC, AVIF and MP4 files (ISO/IEC 14496-12, 4.3), whatever their names say: people rename them."""
TAKEN = "PNG, JPEG, WebP, BMP, GIF and TIFF are taken."
CONVERT = (
    "Convert it to JPEG or PNG, for example with `magick a.heic a.jpg` (ImageMagick), or on a Mac with "
    "`sips -s format jpeg a.heic --out a.jpg`."
)
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)
"""What Pillow raises for damaged content, depending on the format and the place of the damage."""


@dataclass(frozen=True)
class Picture:
    """RGB pixels, and what a person should know of how they came about."""

    image: Image.Image
    remarks: tuple[str, ...]


def read_picture(file: SourceFile) -> Picture:
    """The picture in a file. Raises TrainingInputError, naming the file, for one that cannot be used."""
    if file.suffix in REFUSED_SUFFIXES:
        raise problem(file.name, f"is a {file.suffix[1:].upper()} file, which is not taken. {CONVERT}")
    try:
        if file.path.stat().st_size > MAX_FILE_BYTES:
            raise problem(file.name, f"is larger than {MAX_FILE_BYTES >> 20} MiB.")
        content = file.path.read_bytes()
    except OSError as error:
        raise problem(file.name, f"cannot be read: {error.strerror}.") from error
    if not content:
        raise problem(file.name, "is empty.")
    if content[4:8] == HEIF_MARK:
        raise problem(file.name, f"is HEIC, AVIF or a video by its content, which is not taken. {CONVERT}")
    # Pillow warns of damage that it can pass over: the person who sent the picture should know.
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        image, remarks = _decoded(file, content)
    remarks += [f"read in spite of damage ({' '.join(str(warning.message).split()).rstrip('.')})" for warning in warned]
    return Picture(image, tuple(dict.fromkeys(remarks)))


def _decoded(file: SourceFile, content: bytes) -> tuple[Image.Image, list[str]]:
    try:
        with Image.open(io.BytesIO(content), formats=PILLOW_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(file, f"{image.width} x {image.height} pixels")
            if image.mode in ("I", "F"):
                raise problem(file.name, "has 32 bits a channel, which is not taken. Save it with 8 or 16.")
            remarks = []
            # The other frames of an MPO are a camera's previews and depths, no animation.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                remarks.append("several frames or pages, of which the first is used")
            if image.mode == "CMYK":
                remarks.append("CMYK, made RGB without its colour profile")
            return _rgb(ImageOps.exif_transpose(image)), remarks
    except Image.DecompressionBombError as error:
        raise _too_large(file, "too many pixels") from error
    except UnidentifiedImageError as error:
        raise problem(file.name, f"is no picture by its content. {TAKEN}") from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise problem(file.name, f"is damaged or cannot be read: {reason}. Send it whole, or leave it out.") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba)
    plain = image.convert("RGB")
    plain.info.clear()  # Pillow writes a profile that it finds there.
    return plain


def _too_large(file: SourceFile, seen: str) -> TrainingInputError:
    return problem(file.name, f"has {seen}; {MAX_PIXELS} are the most. Make it smaller.")
