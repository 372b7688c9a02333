"""Single pictures in the formats, modes and conditions that cameras, phones, scanners and downloads leave them in."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.errors import TrainingInputError
from comfyui.training import pictures
from comfyui.training.pictures import Picture, read_picture
from tests.training.dataset_parts import picture, source_file

ORIENTATION = 0x0112
"""The EXIF tag (EXIF 2.32, 4.6.4)."""


def read(tmp_path: Path, content: bytes, name: str = "a.png") -> Picture:
    seen = read_picture(source_file(tmp_path, name, content))
    assert seen.image.mode == "RGB"
    assert seen.image.info == {}
    return seen


def refused(tmp_path: Path, content: bytes, name: str = "a.png") -> str:
    with pytest.raises(TrainingInputError) as caught:
        read_picture(source_file(tmp_path, name, content))
    assert caught.value.input_name == "training_images"
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_is_what_its_content_says(tmp_path: Path, kind: str, name: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    seen = read(tmp_path, picture((200, 30, 60), (5, 3), kind=kind, **options), name)
    assert seen.image.tobytes() == bytes((200, 30, 60)) * 15
    assert seen.remarks == ()


@pytest.mark.parametrize(
    ("orientation", "first_is_at"),
    [(1, (0, 0)), (2, (5, 0)), (3, (5, 3)), (4, (0, 3)), (5, (0, 0)), (6, (3, 0)), (7, (3, 5)), (8, (0, 5))],
)
def test_a_photo_is_upright_as_its_camera_noted(tmp_path: Path, orientation: int, first_is_at: tuple[int, int]) -> None:
    photo = Image.new("RGB", (6, 4), "white")
    photo.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", exif=exif)
    seen = read(tmp_path, buffer.getvalue()).image
    assert seen.size == ((6, 4) if orientation < 5 else (4, 6))
    assert seen.getpixel(first_is_at) == (255, 0, 0)
    assert sum(count for count, colour in seen.getcolors() or [] if colour == (255, 0, 0)) == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a key", "L with a key"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        clear = picture(0, mode="P", transparency=0)
    elif "key" in mode:
        clear = picture(0, mode=mode.split()[0], transparency=0 if mode[0] == "L" else (0, 0, 0))
    else:
        clear = picture((0,) * len(mode), mode=mode)
    assert read(tmp_path, clear).image.getcolors() == [(64 * 64, (255, 255, 255))]
    half = read(tmp_path, picture((255, 0, 0, 128), mode="RGBA")).image.getpixel((0, 0))
    assert half == (255, 127, 127)


def test_sixteen_bits_a_channel_are_scaled_and_not_cut(tmp_path: Path) -> None:
    for mode, kind in [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF")]:
        assert read(tmp_path, picture(0x9C40, mode=mode, kind=kind)).image.getpixel((0, 0)) == (0x9C,) * 3
    # Pillow writes no RGB of 16 bits a channel: IHDR by hand (PNG specification, 11.2.2).
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + bytes.fromhex("9c40 0001 ffff"))), (b"IEND", b"")]
    deep = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    assert read(tmp_path, deep).image.getpixel((0, 0)) == (0x9C, 0, 255)


def test_cmyk_and_grey_and_black_and_white_become_rgb(tmp_path: Path) -> None:
    seen = read(tmp_path, picture((0, 255, 255, 0), mode="CMYK", kind="JPEG", quality=100))
    assert seen.image.getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=3)
    assert seen.remarks == ("CMYK, made RGB without its colour profile",)
    assert read(tmp_path, picture(77, mode="L")).image.getpixel((0, 0)) == (77,) * 3
    assert read(tmp_path, picture(1, mode="1")).image.getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_used_and_it_is_said(tmp_path: Path, kind: str) -> None:
    rest = [Image.new("RGB", (8, 8), colour) for colour in ("lime", "blue")]
    seen = read(tmp_path, picture("red", (8, 8), kind=kind, save_all=True, append_images=rest))
    assert seen.image.getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=3)
    assert seen.remarks == ("several frames or pages, of which the first is used",)


def test_a_phones_jpeg_with_more_pictures_in_it_is_no_animation(tmp_path: Path) -> None:
    content = picture("red", kind="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert read(tmp_path, content, "a.jpg").remarks == ()


def test_a_colour_profile_and_other_metadata_do_not_come_along(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    seen = read(tmp_path, picture("red", icc_profile=b"profile", exif=exif, dpi=(300, 300)))
    buffer = io.BytesIO()
    seen.image.save(buffer, "PNG")
    assert [kind for kind in (b"iCCP", b"eXIf", b"tEXt", b"pHYs") if kind in buffer.getvalue()] == []


HEIC = b"\0\0\0\x18ftypheic" + bytes(12)


@pytest.mark.parametrize("name", ["a.heic", "A.HEIC", "a.avif", "a.dng", "a.psd"])
def test_formats_that_are_not_taken_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, HEIC, name)
    assert said.startswith(f"{name} is a {name[2:].upper()} file, which is not taken. Convert it to JPEG or PNG, ")
    assert "`sips -s format jpeg a.heic --out a.jpg`" in said


def test_heic_by_another_name_is_seen(tmp_path: Path) -> None:
    assert refused(tmp_path, HEIC, "IMG_1.JPG").startswith("IMG_1.JPG is HEIC, AVIF or a video by its content")


def test_no_other_decoder_is_tried_on_what_comes_from_outside(tmp_path: Path) -> None:
    """Pillow reads dozens of formats; EPS would even start Ghostscript."""
    for kind in ("PPM", "TGA", "ICO", "PCX", "EPS", "JPEG2000"):
        content = picture(kind=kind)
        assert refused(tmp_path, content) == (
            "a.png is no picture by its content. PNG, JPEG, WebP, BMP, GIF and TIFF are taken."
        )


def test_thirty_two_bits_a_channel_are_refused(tmp_path: Path) -> None:
    for mode in ("I", "F"):
        said = refused(tmp_path, picture(3, mode=mode, kind="TIFF"))
        assert said == "a.png has 32 bits a channel, which is not taken. Save it with 8 or 16."


@pytest.mark.parametrize(("width", "height"), [(10_000, 9_000), (60_000, 60_000)], ids=["large", "a bomb"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, width: int, height: int) -> None:
    bomb = bytearray(picture())
    bomb[16:24] = struct.pack(">II", width, height)  # in IHDR; its checksum follows
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    said = refused(tmp_path, bytes(bomb))
    assert said.startswith("a.png has ")
    assert said.endswith(" pixels; 89478485 are the most. Make it smaller.")


def test_too_many_bytes_are_not_read(tmp_path: Path) -> None:
    file = source_file(tmp_path, "a.png")
    with file.path.open("wb") as stream:
        stream.truncate(pictures.MAX_FILE_BYTES + 1)
    with pytest.raises(TrainingInputError, match=r"^a\.png is larger than 512 MiB\.$"):
        read_picture(file)


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    file = source_file(tmp_path, "a.png")
    file.path.unlink()
    with pytest.raises(TrainingInputError, match=r"^a\.png cannot be read: No such file or directory\.$"):
        read_picture(file)


def noise(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def with_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F] = 6, "camera"
    return exif


NOISE = {
    "png": noise("PNG", "RGBA", exif=with_exif()),
    "jpg": noise("JPEG", exif=with_exif()),
    "webp": noise("WEBP", "RGBA"),
    "bmp": noise("BMP"),
    "gif": noise("GIF", "P"),
    "tif": noise("TIFF"),
    "lzw.tif": noise("TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_picture_that_was_cut_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    whole = NOISE[kind]
    said = refused(tmp_path, whole[: int(len(whole) * kept)], f"a.{kind}")
    assert said.startswith((f"a.{kind} is damaged or cannot be read: ", f"a.{kind} is no picture by its content."))


def test_a_picture_that_is_damaged_in_the_middle_is_refused_in_pillows_words(tmp_path: Path) -> None:
    raw = bytearray(noise("PNG"))
    struct.pack_into(">I", raw, raw.index(b"IDAT") - 4, 100)  # the chunk's length: the next one begins among pixels
    said = refused(tmp_path, bytes(raw))
    assert said.startswith("a.png is damaged or cannot be read: broken PNG file")


@pytest.mark.parametrize("kind", NOISE)
def test_damaged_bytes_raise_nothing_but_a_refusal(tmp_path: Path, kind: str) -> None:
    choose = random.Random(kind)
    refusals = 0
    for _ in range(150):
        raw = bytearray(NOISE[kind])
        for _ in range(choose.choice([1, 2, 5])):
            raw[choose.randrange(min(len(raw), choose.choice([60, 300, len(raw)])))] = choose.randrange(256)
        try:
            read_picture(source_file(tmp_path, f"a.{kind}", bytes(raw)))
        except TrainingInputError:
            refusals += 1
    assert refusals > 10
    assert len(read(tmp_path, NOISE[kind]).image.getcolors(5000) or []) > 50


def test_damage_that_pillow_passes_over_is_said(tmp_path: Path) -> None:
    content = noise("TIFF")
    # A tag that points behind the end (TIFF 6.0, section 2): the last entry of the only directory.
    directory = struct.unpack("<I", content[4:8])[0]
    count = struct.unpack("<H", content[directory : directory + 2])[0]
    entry = directory + 2 + (count - 1) * 12
    raw = bytearray(content)
    raw[entry : entry + 12] = struct.pack("<HHII", 0x9C00, 2, 100, len(content) + 50)
    seen = read(tmp_path, bytes(raw), "a.tif")
    assert len(seen.remarks) == 1
    assert seen.remarks[0].startswith("read in spite of damage (")
