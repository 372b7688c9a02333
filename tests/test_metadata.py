"""The workflow inside a file is cleaned or taken out; the picture in it stays, and so does what is no such file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyui.metadata import IN_PLACE_SUFFIXES, changes_in_place, our_names_hidden, without_metadata

RUN = "run-0123456789ab"
BY_LINK = "by-link/0123456789abcdef"
PROMPT = json.dumps(
    {
        "8": {"inputs": {"filename_prefix": f'{RUN}/1/4/my "best" pictures/a', "seed": 5}},
        "9": {"inputs": {"lora_name": f"{BY_LINK}/føx-0123456789ab.v2-0123456789ab.safetensors", "on": True}},
        "10": {"inputs": {"lora_1": {"lora": f"{BY_LINK}/fox-{'0' * 64}.sft", "strength": 1}}},
        "11": {"inputs": {"images": ["8", 0], "run_anew": f"{RUN}/2/5"}},
        "12": {"inputs": {"run_anew": f"{RUN}/2/6"}},
    }
)
CLEAN = {
    "8": {"inputs": {"filename_prefix": 'my "best" pictures/a', "seed": 5}},
    "9": {"inputs": {"lora_name": "føx-0123456789ab.v2.safetensors", "on": True}},
    "10": {"inputs": {"lora_1": {"lora": "fox.sft", "strength": 1}}},
    "11": {"inputs": {"images": ["8", 0]}},
    "12": {"inputs": {}},
}


def png(**texts: str) -> bytes:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    out = io.BytesIO()
    Image.radial_gradient("L").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def exif(text: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0110] = text
    return exif


def saved(image_format: str, text: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(out, image_format, exif=exif(text), **options)
    return out.getvalue()


def animation(image_format: str, text: str) -> bytes:
    out = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    texts: dict[str, Any] = {"exif": exif(text)}
    if image_format == "PNG":
        info = PngInfo()
        info.add(b"comf", b"prompt\0" + text.encode(), after_idat=True)
        texts = {"pnginfo": info}
    first.save(out, image_format, save_all=True, append_images=[second], lossless=True, **texts)
    return out.getvalue()


def frames(file: bytes) -> list[bytes]:
    with Image.open(io.BytesIO(file)) as image:
        found = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            found.append(image.convert("RGB").tobytes())
        return found


def test_the_names_in_a_png_are_the_persons_own_again() -> None:
    before = png(prompt=PROMPT, workflow="untouched")
    after = our_names_hidden(before, RUN)
    with Image.open(io.BytesIO(after)) as image:
        assert json.loads(image.info["prompt"]) == CLEAN
        assert image.info["workflow"] == "untouched"
    assert frames(after) == frames(before)


def test_the_names_in_an_animated_webp_are_changed_in_place() -> None:
    before = animation("WEBP", f"prompt:{PROMPT}")
    after = our_names_hidden(before, RUN)
    assert len(after) == len(before)
    with Image.open(io.BytesIO(after)) as image:
        assert json.loads(image.getexif()[0x0110].removeprefix("prompt:")) == CLEAN
    assert frames(after) == frames(before)


def changed_in_place(file: bytes, *, keep_prompt: bool) -> bytes:
    changed = bytearray(file)
    for position, text in changes_in_place(file, RUN, keep_prompt=keep_prompt):
        changed[position : position + len(text)] = text
    assert len(changed) == len(file)
    return bytes(changed)


@pytest.mark.parametrize("keep_prompt", [True, False])
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_the_prompt_in_a_video_is_changed_in_place(tmp_path: Path, container: str, keep_prompt: bool) -> None:
    """Written as ComfyUI's SaveVideo and SaveWEBM do (comfy_extras/nodes_video.py): PyAV, the prompt as a tag."""
    path = tmp_path / f"a.{container}"
    options = {"movflags": "use_metadata_tags"} if container == "mp4" else {}
    with av.open(str(path), "w", options=options) as output:
        output.metadata["prompt"] = PROMPT
        stream = output.add_stream({"mp4": "h264", "webm": "libvpx-vp9"}[container], rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        for shade in (0, 200):
            frame = av.VideoFrame.from_ndarray(numpy.full((64, 64, 3), shade, numpy.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    path.write_bytes(changed_in_place(path.read_bytes(), keep_prompt=keep_prompt))
    with av.open(str(path)) as video:
        tags = {key.lower(): value for key, value in video.metadata.items()}
        if keep_prompt:
            assert json.loads(tags["prompt"]) == CLEAN
        else:
            assert not tags["prompt"].strip()
        assert len(list(video.decode(video=0))) == 2


@pytest.mark.parametrize("container", ["flac", "mp3"])
def test_the_prompt_in_a_sound_is_blank_where_it_is_not_wanted(tmp_path: Path, container: str) -> None:
    """Written as ComfyUI's SaveAudio does (comfy_api/latest/_ui.py)."""
    path = tmp_path / f"a.{container}"
    with av.open(str(path), "w", format=container) as output:
        output.metadata["prompt"] = PROMPT
        stream = output.add_stream({"flac": "flac", "mp3": "libmp3lame"}[container], rate=44100)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 4608), numpy.int16), format="s16", layout="mono")
        frame.sample_rate = 44100
        assert isinstance(stream, av.AudioStream)
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    before = path.read_bytes()
    assert b"filename_prefix" in before
    path.write_bytes(changed_in_place(before, keep_prompt=False))
    assert b"filename_prefix" not in path.read_bytes()
    with av.open(str(path)) as sound:
        assert not sound.metadata.get("prompt", "").strip()
        assert list(sound.decode(audio=0))


@pytest.mark.parametrize("file", [b"", b"no prompt", b'{"1": {"inputs": {', b'{"1": {"inputs": ' + b"[" * 100_000])
def test_a_prompt_that_is_no_json_stays(file: bytes) -> None:
    assert changed_in_place(file, keep_prompt=False) == file


def test_files_with_checksums_are_not_changed_in_place() -> None:
    assert IN_PLACE_SUFFIXES.isdisjoint({".ogg", ".opus", ".mkv"})


@pytest.mark.parametrize("file", [b"", png(prompt="nothing of ours"), png(prompt=PROMPT)[:-5]])
def test_what_cannot_be_cleaned_comes_back_unchanged(file: bytes) -> None:
    assert our_names_hidden(file, RUN) == file


@pytest.mark.parametrize(
    "make",
    [
        lambda: png(prompt=PROMPT, workflow=PROMPT),
        lambda: saved("PNG", PROMPT),
        lambda: saved("WEBP", PROMPT, lossless=True),
        lambda: saved("JPEG", PROMPT, comment=PROMPT.encode()),
        lambda: animation("PNG", PROMPT),
        lambda: animation("WEBP", PROMPT),
    ],
    ids=["png texts", "png exif", "webp", "jpeg", "animated png", "animated webp"],
)
def test_taking_the_workflow_out_leaves_the_picture(make: Callable[[], bytes]) -> None:
    before = make()
    assert b"filename_prefix" in before
    after = without_metadata(before)
    assert b"filename_prefix" not in after
    assert frames(after) == frames(before)
    with Image.open(io.BytesIO(after)) as image:
        assert not image.getexif()


@pytest.mark.parametrize("file", [b"", b"RIFF\0\0\0\0WEBPVP8X", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\0\0", b"text"])
def test_what_is_no_whole_image_comes_back_unchanged(file: bytes) -> None:
    assert without_metadata(file) == file


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_no_cut_file_is_an_error(cut: int) -> None:
    for file in (saved("PNG", PROMPT), saved("WEBP", PROMPT), saved("JPEG", PROMPT)):
        without_metadata(file[:cut])
        our_names_hidden(file[:cut], RUN)
