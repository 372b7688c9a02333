"""Texts in a PNG change; the picture and what is no PNG do not."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyui.png import remove_from_texts

RUN = re.compile(rb"run-\d/")


def png(**texts: str) -> bytes:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    out = io.BytesIO()
    Image.radial_gradient("L").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def test_the_text_changes_and_the_picture_does_not() -> None:
    before = png(prompt='{"prefix": "run-1/a", "other": "run-1/b"}', workflow="untouched")
    after = remove_from_texts(before, RUN)
    with Image.open(io.BytesIO(after)) as image, Image.open(io.BytesIO(before)) as original:
        assert image.tobytes() == original.tobytes()
        assert image.info["prompt"] == '{"prefix": "a", "other": "b"}'
        assert image.info["workflow"] == "untouched"


def test_a_png_without_the_text_is_the_same_bytes() -> None:
    file = png(prompt="nothing here")
    assert remove_from_texts(file, RUN) == file


@pytest.mark.parametrize(
    "file", [b"", b"run-1/", png(prompt="run-1/")[:-5], png(prompt="run-1/")[:60] + b"run-1/", b"\xff\xd8 run-1/"]
)
def test_what_is_no_whole_png_comes_back_unchanged(file: bytes) -> None:
    assert remove_from_texts(file, RUN) == file
