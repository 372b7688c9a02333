"""Real pictures and other files as nodes report them, and what people get."""

from __future__ import annotations

import io
import json
import random
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from comfyui.engine.server import EngineFolders
from comfyui.errors import EngineError, StoppedError
from comfyui.images import ImageOptions
from comfyui.outputs import Output, OutputFile, OutputText, deliver, reported_files
from comfyui.workflow.parse import Node, Workflow
from tests.workflow.answers import SUCCESS_HISTORY

RED, CLEAR = (255, 0, 0), (0, 0, 0, 0)


@pytest.fixture
def folders(tmp_path: Path) -> EngineFolders:
    return EngineFolders.under(tmp_path / "run")


@pytest.fixture
def deliver_one(tmp_path: Path) -> Callable[..., Path]:
    """Deliver one file and return where it came to lie."""

    def one(path: Path, output_format: str = "webp", output_quality: int = 95, node_id: str = "9") -> Path:
        file = OutputFile(node_id, "images", "output", path)
        (delivered,) = deliver([file], tmp_path / "delivered", ImageOptions(output_format, output_quality))
        return delivered

    return one


def workflow_of(*node_ids: str) -> Workflow:
    return Workflow({node_id: Node(node_id, "SaveImage", "Save", {}) for node_id in node_ids})


def only_files(outputs: Sequence[Output]) -> list[OutputFile]:
    files = [output for output in outputs if isinstance(output, OutputFile)]
    assert files == list(outputs)
    return files


def image_entry(filename: str, subfolder: str = "", place: str = "output") -> dict[str, str]:
    return {"filename": filename, "subfolder": subfolder, "type": place}


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def photo() -> Image.Image:
    """Noise, so that quality shows in the size of a file."""
    return Image.frombytes("RGB", (64, 64), random.Random(1).randbytes(64 * 64 * 3))


def animation(path: Path, **options: Any) -> Path:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    return save(path, frames[0], save_all=True, append_images=frames[1:], duration=100, **options)


def png_of_16_bits_a_channel(path: Path) -> Path:
    """An RGB PNG that Pillow reads but cannot write (PNG specification, 5 and 11.2)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = (b"\0" + b"\x12\x34\x56\x78\x9a\xbc" * 4) * 4
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def near(seen: Any, expected: tuple[int, ...]) -> bool:
    return len(seen) == len(expected) and all(abs(a - b) <= 3 for a, b in zip(seen, expected, strict=True))


def test_files_come_in_the_order_of_the_workflow_whatever_order_comfyui_reports(folders: EngineFolders) -> None:
    outputs = {
        "9": {"images": [image_entry("b.png"), image_entry("a.png")]},
        "5.0.1": {"images": [image_entry("made.png")]},
        "12": {"audio": [image_entry("s.flac", "audio")]},
    }
    files = reported_files(outputs, workflow_of("12", "5", "9"), folders)
    output = folders.output.resolve()
    assert files == [
        OutputFile("12", "audio", "output", output / "audio" / "s.flac"),
        OutputFile("5.0.1", "images", "output", output / "made.png"),
        OutputFile("9", "images", "output", output / "b.png"),
        OutputFile("9", "images", "output", output / "a.png"),
    ]


def test_what_comfyui_reports_is_read_as_files_with_their_place(folders: EngineFolders) -> None:
    files = only_files(reported_files(SUCCESS_HISTORY["outputs"], workflow_of("20", "21", "22", "23"), folders))
    assert [(file.place, file.path.relative_to(folders.output.parent.resolve()).as_posix()) for file in files] == [
        ("temp", "temp/ComfyUI_temp_aosnt_00001_.png"),
        ("output", "output/sub/pic_00001_.png"),
        ("output", "output/sub/pic_00002_.png"),
        ("output", "output/anim_00001_.webp"),
    ]


def test_entries_that_are_no_files_are_passed_by_and_a_file_named_twice_comes_once(folders: EngineFolders) -> None:
    outputs = {
        "1": {
            "tags": ["hello"],
            "animated": [True],
            "string": "abc",
            "number": 7,
            "images": [image_entry("a.png"), image_entry("a.png"), image_entry("in.png", place="input"), {}, None],
        }
    }
    files = only_files(reported_files(outputs, workflow_of("1"), folders))
    assert [file.path.name for file in files] == ["a.png"]


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("images", {"filename": "a.webm", "subfolder": "video", "type": "output"}),
        ("audio", {"filename": "a.flac", "subfolder": "audio", "type": "temp"}),
        ("3d", {"filename": "a.glb", "subfolder": "mesh", "type": "output"}),
        ("latents", {"filename": "a.latent", "subfolder": "latents", "type": "output"}),
        ("result", {"filename": "a.bin", "subfolder": "", "type": "output"}),
        ("text", {"filename": "a.txt", "subfolder": "", "type": "output"}),
        # As VideoHelperSuite reports what it calls gifs, videos too.
        (
            "gifs",
            {
                "filename": "a.mp4",
                "subfolder": "",
                "type": "output",
                "format": "video/h264-mp4",
                "frame_rate": 8.0,
                "workflow": "a.png",
                "fullpath": "/comfyui/output/a.mp4",
            },
        ),
    ],
)
def test_a_file_of_any_kind_is_a_file(folders: EngineFolders, kind: str, entry: dict[str, Any]) -> None:
    (file,) = reported_files({"1": {kind: [entry], "animated": [True]}}, workflow_of("1"), folders)
    base = {"output": folders.output, "temp": folders.temp}[entry["type"]].resolve()
    assert file == OutputFile("1", kind, entry["type"], base / entry["subfolder"] / entry["filename"])


@pytest.mark.parametrize(
    ("reported", "texts"),
    [
        (["hello"], ["hello"]),
        (["one", "two", "two", ""], ["one", "two", "two", ""]),
        (["x"], ["x"]),
        (list("hello"), ["hello"]),
        ([""], [""]),
        ([3, None, ["nested"], {"a": 1}], []),
        ([], []),
        ("hello", []),
        (None, []),
    ],
)
def test_texts_of_a_node(folders: EngineFolders, reported: Any, texts: list[str]) -> None:
    outputs = reported_files({"1": {"text": reported}}, workflow_of("1"), folders)
    assert outputs == [OutputText("1", text) for text in texts]


def test_texts_keep_their_place_in_the_order_and_come_after_the_files_of_their_node(folders: EngineFolders) -> None:
    reported: dict[str, dict[str, Any]] = {
        "3": {"images": [image_entry("last.png")]},
        "2": {"text": ["two"], "images": [image_entry("a.png"), image_entry("b.png")]},
        "1": {"text": ["one"]},
    }
    outputs = reported_files(reported, workflow_of("1", "2", "3"), folders)
    assert [output.text if isinstance(output, OutputText) else output.path.name for output in outputs] == [
        *("one", "a.png", "b.png", "two", "last.png")
    ]


@pytest.mark.parametrize("suffix", ["txt", "csv", "md", "json"])
def test_a_text_that_is_in_a_file_comes_as_that_file_alone(folders: EngineFolders, suffix: str) -> None:
    """What ComfyUI 0.30.0 reports for SaveText."""
    reported: dict[str, dict[str, Any]] = {
        "7": {"text": ["hello"], "files": [image_entry(f"note_00001.{suffix}", "notes")]}
    }
    (file,) = only_files(reported_files(reported, workflow_of("7"), folders))
    assert file.path.name == f"note_00001.{suffix}"


def test_a_3d_file_that_is_reported_by_its_name_alone(folders: EngineFolders) -> None:
    """What ComfyUI 0.30.0 reports for Save3DAdvanced, SaveGaussianSplat, SavePointCloud and Preview3D."""
    (folders.output / "3d").mkdir()
    for name in ("3d/mesh_00001.glb", "cloud_00001.PLY"):
        (folders.output / name).touch()
    preview = "preview3d_0123456789abcdef.glb"  # gone: ComfyUI answered from its cache
    reported: dict[str, dict[str, Any]] = {
        "1": {"result": ["3d/mesh_00001.glb", {"position": {"x": 1}}, []]},
        "2": {"result": ["cloud_00001.PLY", None, None]},
        "3": {"result": [preview, None, "temp/bg_1.png"]},
    }
    output = folders.output.resolve()
    assert reported_files(reported, workflow_of("1", "2", "3"), folders) == [
        OutputFile("1", "result", "output", output / "3d" / "mesh_00001.glb"),
        OutputFile("2", "result", "output", output / "cloud_00001.PLY"),
        OutputFile("3", "result", "temp", output / preview),
    ]


@pytest.mark.parametrize(
    "result",
    [
        ["not_there.glb"],
        ["../secret.glb"],
        ["SECRET"],
        ["hello"],
        ["note.txt"],
        ["nul\0.glb"],
        ["x" * 5000 + ".glb"],
        [7],
        [None],
        [],
        "x.glb",
    ],
)
def test_other_results_are_no_3d_files(folders: EngineFolders, tmp_path: Path, result: Any) -> None:
    secret = tmp_path / "run" / "secret.glb"
    secret.touch()
    (folders.output / "note.txt").touch()
    result = [str(secret)] if result == ["SECRET"] else result
    assert reported_files({"1": {"result": result}}, workflow_of("1"), folders) == []


def test_a_text_is_delivered_as_a_file_in_its_place(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (1, 1)))
    image = OutputFile("2", "images", "output", path)
    texts = ["zwei Füchse 狐\r\n", "", "half \ud83e a pair"]
    delivered = deliver(
        [OutputText("9:1", texts[0]), image, *(OutputText("3", text) for text in texts[1:])],
        tmp_path / "out",
        ImageOptions("png", 95),
    )
    assert [file.name for file in delivered] == ["000-9_1-text.txt", "001-2-a.png", "002-3-text.txt", "003-3-text.txt"]
    assert [file.read_bytes().decode() for file in delivered if file.suffix == ".txt"] == [*texts[:2], "half ? a pair"]


@pytest.mark.parametrize(
    ("filename", "subfolder"),
    [("../../secret", ""), ("secret", "../.."), ("/etc/passwd", ""), ("passwd", "/etc"), ("x", "sub/../../../..")],
)
def test_a_reported_name_that_leads_outside_is_refused(folders: EngineFolders, filename: str, subfolder: str) -> None:
    with pytest.raises(EngineError) as caught:
        reported_files({"1": {"images": [image_entry(filename, subfolder)]}}, workflow_of("1"), folders)
    assert str(caught.value) == (
        f"A node reports the output {filename!r} in {subfolder!r}, outside ComfyUI's output folder."
    )


def test_a_link_in_the_output_folder_that_leads_outside_is_refused(folders: EngineFolders, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folders.output / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(EngineError, match="outside ComfyUI's output folder"):
        reported_files({"1": {"images": [image_entry("a.png")]}}, workflow_of("1"), folders)


def test_delivered_names_sort_in_the_order_of_the_files_and_never_collide(tmp_path: Path) -> None:
    """Same names from two nodes, a subgraph's id, and more files than three digits count."""
    sources = [save(tmp_path / f"{name}.png", Image.new("RGB", (1, 1))) for name in ("z", "a")]
    files = [OutputFile(node_id, "images", "output", path) for node_id in ("12:3", "9") for path in sources]
    names = [path.name for path in deliver(files, tmp_path / "out", ImageOptions("png", 95))]
    assert names == ["000-12_3-z.png", "001-12_3-a.png", "002-9-z.png", "003-9-a.png"]
    many = [path.name for path in deliver(files[:1] * 1001, tmp_path / "many", ImageOptions("png", 95))]
    assert many == sorted(set(many))
    assert (many[0], many[-1]) == ("0000-12_3-z.png", "1000-12_3-z.png")


@pytest.mark.parametrize(
    ("filename", "delivered"),
    [
        ("pic_00001_.png", "000-9-pic_00001.png"),
        ("a b&c;$(rm).png", "000-9-a_b_c_rm.png"),
        ("写真_00001_.png", "000-9-写真_00001.png"),
        ("___.png", "000-9-output.png"),
        ("a.p n\ng", "000-9-a.p_n_g"),
        ("..png", "000-9-..png"),
        ("no_suffix", "000-9-no_suffix"),
    ],
)
def test_a_delivered_name_is_safe(
    tmp_path: Path, deliver_one: Callable[..., Path], filename: str, delivered: str
) -> None:
    path = tmp_path / filename
    path.write_bytes(b"content")
    assert deliver_one(path, "png").name == delivered


@given(st.text(max_size=120), st.text(min_size=1, max_size=80))
def test_any_name_and_node_id_give_a_name_that_a_disk_takes(node_id: str, stem: str) -> None:
    from comfyui.outputs import _safe

    name = f"000-{_safe(node_id)}-{_safe(stem)}{_safe('.' + stem)}"
    assert len(name.encode()) <= 255
    assert "/" not in name
    assert "\0" not in name


def test_a_long_name_in_another_script_fits(tmp_path: Path, deliver_one: Callable[..., Path]) -> None:
    path = save(tmp_path / ("字" * 78 + "_00001_.png"), Image.new("RGB", (2, 2)))
    delivered = deliver_one(path, node_id="字" * 100)
    with Image.open(delivered) as image:
        assert image.format == "WEBP"


@pytest.mark.parametrize(("output_format", "pillow_format"), [("webp", "WEBP"), ("jpg", "JPEG"), ("png", "PNG")])
@pytest.mark.parametrize("source", ["a.png", "a.jpg", "a.webp"])
def test_a_still_image_becomes_the_format_that_was_asked_for(
    tmp_path: Path, deliver_one: Callable[..., Path], source: str, output_format: str, pillow_format: str
) -> None:
    path = save(tmp_path / source, Image.new("RGB", (8, 8), RED), quality=100)
    delivered = deliver_one(path, output_format)
    with Image.open(delivered) as image:
        assert image.format == pillow_format
        assert near(image.convert("RGB").getpixel((4, 4)), RED)
    assert delivered.name == f"000-9-a.{output_format}"


@pytest.mark.parametrize(
    ("source", "output_format"), [("a.png", "png"), ("a.webp", "webp"), ("a.jpg", "jpg"), ("a.jpeg", "jpg")]
)
def test_an_image_that_is_in_that_format_stays_byte_for_byte(
    tmp_path: Path, deliver_one: Callable[..., Path], source: str, output_format: str
) -> None:
    path = save(tmp_path / source, photo(), quality=60)
    delivered = deliver_one(path, output_format, 10)
    assert delivered.read_bytes() == path.read_bytes()
    assert delivered.suffix == path.suffix


@pytest.mark.parametrize("output_format", ["webp", "jpg"])
def test_quality_is_used(tmp_path: Path, deliver_one: Callable[..., Path], output_format: str) -> None:
    path = save(tmp_path / "a.png", photo())
    sizes = [deliver_one(path, output_format, quality).stat().st_size for quality in (0, 50, 100)]
    assert sizes[0] < sizes[1] < sizes[2]


def half_clear(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """An image of this mode whose left half is clear and whose right half is red (or white), and options to save it."""
    rgba = Image.new("RGBA", (8, 8), CLEAR)
    rgba.paste((*RED, 255), (4, 0, 8, 8))
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([0, 0, 0, *RED])
        image.paste(1, (4, 0, 8, 8))
        return image, {"transparency": 0}
    if mode == "RGB":
        return rgba.convert("RGB"), {"transparency": (0, 0, 0)}
    return rgba if mode == "RGBA" else rgba.convert(mode), {}


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB", "LA"])
def test_what_is_transparent_is_white_in_a_jpg(tmp_path: Path, deliver_one: Callable[..., Path], mode: str) -> None:
    image, options = half_clear(mode)
    with Image.open(deliver_one(save(tmp_path / "a.png", image, **options), "jpg", 100)) as delivered:
        assert delivered.mode == "RGB"
        assert near(delivered.getpixel((1, 4)), (255, 255, 255))
        assert not near(delivered.getpixel((6, 4)), (255, 255, 255))


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB", "LA"])
def test_what_is_transparent_stays_so_in_a_webp(tmp_path: Path, deliver_one: Callable[..., Path], mode: str) -> None:
    image, options = half_clear(mode)
    with Image.open(deliver_one(save(tmp_path / "a.png", image, **options), "webp", 100)) as delivered:
        assert delivered.mode == "RGBA"
        alpha = delivered.getchannel("A")
        assert (alpha.getpixel((1, 4)), alpha.getpixel((6, 4))) == (0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("output_format", ["webp", "jpg"])
def test_an_image_without_colours_or_with_a_palette_is_converted(
    tmp_path: Path, deliver_one: Callable[..., Path], mode: str, output_format: str
) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (8, 8), "white").convert(mode))
    with Image.open(deliver_one(path, output_format, 100)) as delivered:
        assert near(delivered.convert("RGB").getpixel((4, 4)), (255, 255, 255))


def test_a_half_transparent_pixel_is_blended_with_white(tmp_path: Path, deliver_one: Callable[..., Path]) -> None:
    path = save(tmp_path / "a.png", Image.new("RGBA", (8, 8), (255, 0, 0, 128)))
    with Image.open(deliver_one(path, "jpg", 100)) as delivered:
        assert near(delivered.getpixel((4, 4)), (255, 127, 127))


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("output_format", ["webp", "jpg"])
def test_more_than_8_bits_a_channel_stay_untouched(
    tmp_path: Path, deliver_one: Callable[..., Path], kind: str, output_format: str
) -> None:
    path = tmp_path / "depth.png"
    if kind == "colour":
        png_of_16_bits_a_channel(path)
    else:
        save(path, Image.new("I;16", (4, 4), 40_000))
    delivered = deliver_one(path, output_format)
    assert delivered.name == "000-9-depth.png"
    assert delivered.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.png"])
@pytest.mark.parametrize("output_format", ["webp", "jpg", "png"])
def test_an_animation_stays_untouched(
    tmp_path: Path, deliver_one: Callable[..., Path], name: str, output_format: str
) -> None:
    path = animation(tmp_path / name)
    with Image.open(path) as made:
        assert getattr(made, "n_frames", 1) == 3
    delivered = deliver_one(path, output_format)
    assert delivered.suffix == path.suffix
    assert delivered.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "name", ["a.mp4", "a.flac", "a.txt", "a.safetensors", "a.glb", "a.latent", "a.gif", "no_suffix"]
)
def test_other_files_stay_byte_for_byte(tmp_path: Path, deliver_one: Callable[..., Path], name: str) -> None:
    path = tmp_path / name
    path.write_bytes(random.Random(2).randbytes(10_000))
    delivered = deliver_one(path)
    assert delivered.suffix == path.suffix
    assert delivered.read_bytes() == path.read_bytes()


def cut_png() -> bytes:
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    return buffer.getvalue()[:2000]


def test_an_image_that_cannot_be_converted_is_delivered_as_it_is(
    tmp_path: Path, deliver_one: Callable[..., Path]
) -> None:
    """Wider than WebP can be, no image at all, or cut: the work is done, and the file is better than an error."""
    wide = save(tmp_path / "wide.png", Image.new("L", (16384, 2)))
    (tmp_path / "text.png").write_bytes(b"a node called this a png")
    (tmp_path / "cut.png").write_bytes(cut_png())
    for path in (wide, tmp_path / "text.png", tmp_path / "cut.png"):
        delivered = deliver_one(path, "webp")
        assert delivered.suffix == ".png"
        assert delivered.read_bytes() == path.read_bytes()
    assert sorted(path.suffix for path in (tmp_path / "delivered").iterdir()) == [".png"] * 3


def _with_workflow(path: Path) -> Path:
    info = PngInfo()
    info.add_text("prompt", '{"9": {"inputs": {"filename_prefix": "run-1/1/4/fox"}}}')
    return save(path, Image.new("RGB", (8, 8), RED), pnginfo=info)


@pytest.mark.parametrize("output_format", ["webp", "jpg", "png"])
def test_the_workflow_stays_in_the_picture_or_goes(tmp_path: Path, output_format: str) -> None:
    source = OutputFile("9", "images", "output", _with_workflow(tmp_path / "a.png"))
    options = ImageOptions(output_format, 95, run_folder="run-1")
    (kept,) = deliver([source], tmp_path / "kept", options)
    with Image.open(kept) as image:
        text = image.info["prompt"] if output_format == "png" else image.getexif()[0x0110].removeprefix("prompt:")
        assert json.loads(text) == {"9": {"inputs": {"filename_prefix": "fox"}}}
    (bare,) = deliver([source], tmp_path / "bare", replace(options, embed_workflow=False))
    assert b"filename_prefix" not in bare.read_bytes()
    with Image.open(bare) as image:
        assert image.convert("RGB").getpixel((4, 4)) == pytest.approx(RED, abs=3)


@pytest.mark.parametrize(("suffix", "changes"), [(".mp4", True), (".MP3", True), (".opus", False), (".glb", False)])
def test_the_workflow_in_a_video_or_sound_changes_where_it_stands(tmp_path: Path, suffix: str, changes: bool) -> None:
    prompt = b'{"9": {"inputs": {"filename_prefix": "run-1/1/4/fox"}}}'
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before" + prompt + b"behind")
    source, options = OutputFile("9", "images", "output", path), ImageOptions("webp", 95, run_folder="run-1")
    (kept,) = deliver([source], tmp_path / "kept", options)
    (bare,) = deliver([source], tmp_path / "bare", replace(options, embed_workflow=False))
    if changes:
        assert kept.read_bytes() == b'before{"9": {"inputs": {"filename_prefix": "fox"          }}}behind'
        assert bare.read_bytes() == b"before" + b" " * len(prompt) + b"behind"
    else:
        assert kept.read_bytes() == bare.read_bytes() == path.read_bytes()
    (tmp_path / f"empty{suffix}").touch()
    (empty,) = deliver([replace(source, path=tmp_path / f"empty{suffix}")], tmp_path / "empty", options)
    assert empty.stat().st_size == 0


def test_a_stop_ends_the_delivery(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        deliver([OutputText("9", "a")], tmp_path, ImageOptions("webp", 95), stop)
    assert list(tmp_path.iterdir()) == []


def test_a_workflow_that_jpeg_has_no_room_for_is_left_out(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", json.dumps({"text": "x" * 70_000}))
    source = save(tmp_path / "a.png", Image.new("RGB", (8, 8), RED), pnginfo=info)
    (delivered,) = deliver([OutputFile("9", "images", "output", source)], tmp_path / "out", ImageOptions("jpg", 95))
    with Image.open(delivered) as image:
        assert (image.format, dict(image.getexif())) == ("JPEG", {})


def test_the_colour_profile_stays_in_a_converted_picture(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = save(tmp_path / "a.png", Image.new("RGB", (8, 8), RED), icc_profile=profile)
    for output_format in ("webp", "jpg"):
        options = ImageOptions(output_format, 95, embed_workflow=False)
        (delivered,) = deliver([OutputFile("9", "images", "output", source)], tmp_path / output_format, options)
        with Image.open(delivered) as image:
            assert image.info["icc_profile"] == profile
