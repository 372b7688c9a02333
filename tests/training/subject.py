"""A subject to learn, drawn here: an orange disc on grey, under a word that no tiny text encoder has met."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw

TRIGGER_WORD = "zorb"
SIDE = 64
COUNT = 6


def picture(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """The subject, a little elsewhere in each picture."""
    width, height = size
    image = Image.new("RGB", size, (96, 96, 104))
    left, top = width // 4 + number % 3, height // 4 + number % 2
    ImageDraw.Draw(image).ellipse((left, top, left + width // 2, top + height // 2), fill=(255, 128, 0))
    return image


def subject_zip(path: Path, sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),)) -> Path:
    """A zip of COUNT pictures of the subject, in Kohya's form; `sizes` are taken in turn."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(COUNT):
            data = io.BytesIO()
            picture(number, sizes[number % len(sizes)]).save(data, "PNG")
            archive.writestr(f"10_{TRIGGER_WORD}/{number}.png", data.getvalue())
    return path
