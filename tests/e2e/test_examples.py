"""Every example workflow through Cog's real predict server, judged by what is in the files that come back.

A test has the name of the example that it runs, so an example without a test is found.
"""

from __future__ import annotations

import io
import json
import re
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageStat

from comfyui.deadline import Deadline
from comfyui.local.cog_server import CogServer, file_of_data_uri
from comfyui.local.demo.weights import RECIPES, make_demo_weights
from comfyui.settings import PROJECT_ROOT
from tests.e2e.conftest import READY_S, Served
from tests.parts import TEST_MODELS, example

FOLDER = PROJECT_ROOT / "examples" / "workflows"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.json"))
WEIGHT_INPUTS = ("ckpt_name", "lora_name", "control_net_name")
Box = tuple[int, int, int, int]
Changes = dict[str, dict[str, Any]]
SMALL: dict[str, Any] = {"width": 64, "height": 64}
"""For runs that look at something else than the example's own size."""
BLUE, ORANGE = (40, 60, 160), (230, 160, 40)
CIRCLE, HOLE = (24, 24, 104, 104), (40, 40, 88, 88)
RATE = 44100


@dataclass(frozen=True)
class Example:
    """The example that a test is named after, and the server to run it on."""

    name: str
    served: Served
    data_dir: Path

    def workflow(self, changes: Changes | None = None, **values: Any) -> str:
        """`changes` are inputs by the title of their node, `values` those of every node that has them."""
        graph = example(self.name, **values)
        titles = {node["_meta"]["title"]: node for node in graph.values()}
        for title, inputs in (changes or {}).items():
            titles[title]["inputs"].update(inputs)
        return json.dumps(graph)

    def run(
        self,
        changes: Changes | None = None,
        *,
        send: Path | None = None,
        temp: bool = False,
        output_format: str = "png",
        embed: bool = True,
        **values: Any,
    ) -> list[bytes]:
        """The files that come back."""
        uris = self.served.output_of(
            workflow_json=self.workflow(changes, **values),
            output_format=output_format,
            return_temp_files=temp,
            embed_workflow=embed,
            randomise_seeds=False,
            **({"input_file": str(send)} if send else {}),
        )
        return [file_of_data_uri(uri) for uri in uris]

    def picture(self, changes: Changes | None = None, **options: Any) -> Image.Image:
        """The one picture that comes back."""
        (file,) = self.run(changes, **options)
        return picture(file)

    def file_names(self) -> list[str]:
        """Names of the last run's files, as Cog uploads them; a data: URI has no room for them."""
        folders = [path for path in (self.data_dir / "outputs").iterdir() if path.is_dir()]
        return sorted(path.name for path in max(folders, key=lambda path: path.stat().st_mtime_ns).iterdir())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A server with the demo weights in its models folder, and its data folder."""
    make_demo_weights(TEST_MODELS, RECIPES)
    data_dir = tmp_path_factory.mktemp("examples")
    lines: list[str] = []
    environ = {"MODELS_DIR": str(TEST_MODELS), "DATA_DIR": str(data_dir)}
    with CogServer("predict", environ=environ, sink=lines.append) as server:
        server.wait_ready(Deadline(READY_S, "The predictor's setup"))
        yield Served(server, lines), data_dir


@pytest.fixture
def this(running: tuple[Served, Path], request: pytest.FixtureRequest) -> Example:
    return Example(request.node.originalname.removeprefix("test_"), *running)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An orange circle on blue."""
    image = Image.new("RGB", (128, 128), BLUE)
    ImageDraw.Draw(image).ellipse(CIRCLE, fill=ORANGE)
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def picture(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> float:
    """How far two pictures are apart on average, in steps of 255."""
    assert one.size == other.size
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def furthest(one: Image.Image, other: Image.Image) -> int:
    """How far two pictures are apart where they differ most, in steps of 255."""
    assert one.size == other.size
    return int(np.asarray(ImageChops.difference(one, other)).max())


def mean_colour(image: Image.Image, box: Box) -> list[float]:
    return ImageStat.Stat(image.crop(box)).mean


def is_lively(image: Image.Image) -> bool:
    """False for one colour all over: zeros, NaN, a decoder that failed, the grey of an empty canvas."""
    return max(ImageStat.Stat(image).stddev) > 15


def frames_of(video: bytes) -> tuple[str, float, list[Image.Image]]:
    """Codec, frames a second, and the frames of a video, decoded."""
    with av.open(io.BytesIO(video), "r") as container:
        stream = container.streams.video[0]
        frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        assert stream.average_rate is not None
        return stream.codec_context.name, float(stream.average_rate), frames


def sound_of(file: bytes) -> tuple[str, int, np.ndarray[Any, Any]]:
    """Codec, sample rate, and the samples of the first channel, from -1 to 1."""
    with av.open(io.BytesIO(file), "r") as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        parts = [part.to_ndarray()[0] for frame in container.decode(stream) for part in resampler.resample(frame)]
        return stream.codec_context.name, stream.rate, np.concatenate(parts)


# --- Pictures --------------------------------------------------------------------------------------------------------


def test_txt2img(this: Example) -> None:
    made = this.picture()
    assert made.size == (256, 256)
    assert is_lively(made)
    assert distance(this.picture(**SMALL, seed=43), this.picture(**SMALL)) > 10


def test_tiny_sd3(this: Example) -> None:
    made = this.picture()
    assert made.size == (64, 64)
    assert is_lively(made)
    assert distance(this.picture(seed=43), made) > 10


def test_txt2img_lora(this: Example) -> None:
    assert this.picture().size == (256, 256)
    on, off = (this.picture(**SMALL, strength_model=value, strength_clip=value) for value in (0.8, 0.0))
    assert distance(on, off) > 1


def test_two_loras(this: Example) -> None:
    off = {"strength_model": 0.0, "strength_clip": 0.0}
    made = [this.picture(changes) for changes in ({}, {"Second LoRA": off}, {"First LoRA": off})]
    assert made[0].size == (128, 128)
    assert all(distance(one, other) > 1 for one in made for other in made if one is not other)


def test_lcm(this: Example) -> None:
    made = this.picture()
    assert made.size == (128, 128)
    assert is_lively(made)
    assert distance(this.picture(seed=43), made) > 10
    # At a guidance of 1 the negative prompt counts for nothing, and above it does.
    other = {"Negative prompt": {"text": "a blue whale"}}
    assert furthest(this.picture(other), made) == 0
    assert furthest(this.picture(other, cfg=2.0), this.picture(cfg=2.0)) > 0


def test_turbo(this: Example) -> None:
    made = this.picture()
    assert made.size == (128, 128)
    assert is_lively(made)
    assert distance(this.picture(noise_seed=43), made) > 10
    assert distance(this.picture(steps=4), made) > 1


def test_img2img(this: Example, photo: Path) -> None:
    with Image.open(photo) as image:
        sent = image.convert("RGB").resize((64, 64))
    little, some, much = (this.picture(send=photo, denoise=denoise, **SMALL) for denoise in (0.3, 0.5, 0.8))
    assert 1 < distance(little, sent) < distance(some, sent) < distance(much, sent)
    for box in ((28, 28, 36, 36), (0, 0, 8, 8)):  # what is orange stays so, and what is blue
        seen, was = mean_colour(some, box), mean_colour(sent, box)
        assert (seen[0] > seen[2]) == (was[0] > was[2])


def test_img2img_of_another_size(running: tuple[Served, Path], tmp_path: Path) -> None:
    Image.new("RGB", (300, 90), ORANGE).save(tmp_path / "wide.png")
    assert Example("img2img", *running).picture(send=tmp_path / "wide.png").size == (128, 128)


def test_inpaint(this: Example, photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as image:
        sent = image.convert("RGB")
    alpha = Image.new("L", sent.size, 255)
    alpha.paste(0, HOLE)
    clear = sent.convert("RGBA")
    clear.putalpha(alpha)
    clear.save(tmp_path / "clear.png")

    made = this.picture(send=tmp_path / "clear.png")
    assert distance(made.crop(HOLE), sent.crop(HOLE)) > 10
    assert is_lively(made.crop(HOLE))
    outside = Image.composite(made, sent, alpha)  # the hole as it was sent, the rest as it came back
    assert furthest(outside, sent) == 0
    assert distance(this.picture(send=tmp_path / "clear.png", seed=43).crop(HOLE), made.crop(HOLE)) > 5


def test_inpaint_mask(this: Example, photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as image:
        sent = image.convert("RGB")
    keep = Image.new("L", sent.size, 255)
    keep.paste(0, HOLE)
    ImageChops.invert(keep).save(tmp_path / "mask.png")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as both:
        both.write(photo, "photo.png")
        both.write(tmp_path / "mask.png", "mask.png")

    made = this.picture(send=tmp_path / "both.zip")
    assert distance(made.crop(HOLE), sent.crop(HOLE)) > 10
    assert is_lively(made.crop(HOLE))
    assert furthest(Image.composite(made, sent, keep), sent) == 0


def test_outpaint(this: Example, photo: Path) -> None:
    with Image.open(photo) as image:
        sent = image.convert("RGB")
    made = this.picture(send=photo)
    assert made.size == (192, 128)
    feathering = 16
    assert furthest(made.crop((32 + feathering, 0, 160 - feathering, 128)), sent.crop((feathering, 0, 112, 128))) == 0
    for side in ((0, 0, 32, 128), (160, 0, 192, 128)):
        assert is_lively(made.crop(side))


def test_controlnet(this: Example, photo: Path) -> None:
    lines, on, off = (
        this.run({"Follow the lines": {"strength": strength}}, send=photo, temp=temp)
        for strength, temp in ((1.0, True), (1.0, False), (0.0, False))
    )
    assert [len(files) for files in (lines, on, off)] == [2, 1, 1]
    assert lines[0] == on[0]
    preview = picture(lines[1]).convert("L")
    assert preview.getextrema() == (0, 255)

    # The whole picture changes with strength, and it gets brighter where the lines are.
    followed, free = (picture(file).convert("L") for file in (on[0], off[0]))
    near = preview.filter(ImageFilter.MaxFilter(5))
    far = ImageChops.invert(preview.filter(ImageFilter.MaxFilter(21)))

    def rise(where: Image.Image) -> float:
        return ImageStat.Stat(followed, where).mean[0] - ImageStat.Stat(free, where).mean[0]

    assert rise(near) > 30
    assert abs(rise(far)) < rise(near) / 2


def test_batch_of_4(this: Example) -> None:
    made = [picture(file) for file in this.run()]
    assert [image.size for image in made] == [(128, 128)] * 4
    assert all(distance(one, other) > 10 for one in made for other in made if one is not other)
    assert this.file_names() == [f"00{number}-8-batch_of_4_0000{number + 1}.png" for number in range(4)]


def test_preview(this: Example) -> None:
    assert "return_temp_files" in this.served.error_of(workflow_json=this.workflow())
    made = this.picture(temp=True)  # from ComfyUI's cache
    assert made.size == (128, 128)
    assert is_lively(made)


# --- Animations and videos -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", ["png", "jpg"])
def test_animation_webp(this: Example, output_format: str) -> None:
    (file,) = this.run(output_format=output_format)
    with Image.open(io.BytesIO(file)) as image:
        assert (image.format, image.size, image.n_frames) == ("WEBP", (64, 64), 6)  # type: ignore[attr-defined]
        frames = []
        for number in range(6):
            image.seek(number)
            frames.append(image.convert("RGB"))
            assert abs(image.info["duration"] - 1000 / 6) < 1
    assert all(distance(one, other) > 10 for one in frames for other in frames if one is not other)


def assert_workflow_may_be_left_out(this: Example, file: bytes) -> None:
    assert b'"filename_prefix": "video"' in file
    (bare,) = this.run(embed=False)
    assert b"filename_prefix" not in bare
    # Not the same to the bit: x264's threads give about one encoding in eight of the same frames another rounding,
    # up to 2.1 from the usual one on average, where the frames of these examples are 10 and more from each other.
    for one, other in zip(frames_of(bare)[2], frames_of(file)[2], strict=True):
        assert distance(one, other) < 5


def test_video_webm(this: Example) -> None:
    (file,) = this.run()
    assert file.startswith(b"\x1a\x45\xdf\xa3")
    codec, rate, frames = frames_of(file)
    assert (codec, rate, [frame.size for frame in frames]) == ("vp9", 6.0, [(64, 64)] * 6)
    assert all(is_lively(frame) for frame in frames)
    assert this.file_names() == ["000-8-video_00001.webm"]
    assert_workflow_may_be_left_out(this, file)


def test_video_mp4(this: Example) -> None:
    (file,) = this.run()
    assert file[4:8] == b"ftyp"
    codec, rate, frames = frames_of(file)
    assert (codec, rate, [frame.size for frame in frames]) == ("h264", 6.0, [(64, 64)] * 6)
    assert all(is_lively(frame) for frame in frames)
    assert this.file_names() == ["000-8-video_00001.mp4"]
    assert_workflow_may_be_left_out(this, file)


# --- Sound and text --------------------------------------------------------------------------------------------------


def test_audio(this: Example, tmp_path: Path) -> None:
    """Half a second at 220 Hz, then 440 Hz: the second that is cut out is all 440, and half as loud."""
    times = np.arange(2 * RATE) / RATE
    wanted_hz, loudness = 440, 0.5
    samples = np.sin(2 * np.pi * np.where(times < 0.5, wanted_hz / 2, wanted_hz) * times) * loudness
    with wave.open(str(tmp_path / "hum.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())

    for file, codec, duration_slack in zip(this.run(send=tmp_path / "hum.wav"), ("flac", "mp3"), (0, 0.1), strict=True):
        name, rate, heard = sound_of(file)
        assert name.removesuffix("float") == codec
        assert abs(len(heard) / rate - 1) <= duration_slack
        assert abs(np.sqrt((heard**2).mean()) - loudness / 2 / np.sqrt(2)) < 0.01
        spectrum = np.abs(np.fft.rfft(heard))
        assert abs(float(spectrum.argmax()) * rate / len(heard) - wanted_hz) < 3
    assert this.file_names() == ["000-4-lossless_00001.flac", "001-5-small_00001.mp3"]
    for file in this.run(send=tmp_path / "hum.wav", embed=False):
        assert b"filename_prefix" not in file
        assert len(sound_of(file)[2]) > RATE / 2


def test_text(this: Example) -> None:
    parts = {"Put the prompt together": {"string_a": "zwei Füchse\n狐", "string_b": "im Schnee ❄"}}
    for _ in range(2):  # the second comes from ComfyUI's cache
        image, text = this.run(parts)
        assert picture(image).size == (128, 128)
        assert text.decode() == "zwei Füchse\n狐 im Schnee ❄"
    assert this.file_names() == ["000-8-text_00001.png", "001-9-text.txt"]


# --- The folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_has_a_test_and_titles_and_small_numbers(name: str) -> None:
    assert f"test_{name}" in globals()
    for node in example(name).values():
        assert node["_meta"]["title"]
        inputs = node["inputs"]
        assert max([0, *(inputs[key] for key in ("width", "height") if key in inputs)]) <= 256
        assert inputs.get("steps", 0) <= 4


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_readme_has_a_row_for_each_example_with_its_weights(name: str) -> None:
    (row,) = [line for line in readme_rows() if line[0] == f"`{name}.json`"]
    nodes = example(name).values()
    weights = {value for node in nodes for key, value in node["inputs"].items() if key in WEIGHT_INPUTS}
    assert {f"{found}.safetensors" for found in re.findall(r"`([^`]+)`", row[3])} == weights
    assert weights <= {f"{Path(recipe).name}.safetensors" for recipe in RECIPES}
    assert bool(row[2]) == any(node["class_type"].startswith("Load") for node in nodes)
    assert row[1]
    assert row[4]


def test_the_readme_names_no_other_example() -> None:
    assert {row[0] for row in readme_rows()} == {f"`{name}.json`" for name in EXAMPLES}


def readme_rows() -> list[list[str]]:
    """The cells of the README's table."""
    lines = (FOLDER / "README.md").read_text("utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
