"""Datasets from the forms that people have them in, honest and broken, to PNGs on disk and a report."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfyui.errors import StorageError, TrainingInputError
from comfyui.training import dataset as dataset_module
from comfyui.training import source_files
from comfyui.training.dataset import Dataset, prepare_dataset, report
from comfyui.training.fitting import buckets, fitted_size
from comfyui.training.remarks import Remark, Skipped
from comfyui.training.source_files import natural_key
from tests.training.dataset_parts import Files, archive_of, folder_of, picture

RED = picture("red")
GREEN = picture("green")
BLUE = picture("blue")
FOX: Files = {"10_fox/a.png": RED, "10_fox/a.txt": "a fox", "10_fox/b.png": GREEN, "2_sea/c.png": BLUE}


def prepared(
    tmp_path: Path, files: Files, *, resolution: int = 64, fit: str = "buckets", trigger_word: str = ""
) -> Dataset:
    source = folder_of(tmp_path / "source", files)
    return prepare_dataset(source, tmp_path / "out", resolution=resolution, fit=fit, trigger_word=trigger_word)


def refused(tmp_path: Path, files: Files) -> str:
    with pytest.raises(TrainingInputError) as caught:
        prepared(tmp_path, files)
    assert caught.value.input_name == "training_images"
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    return str(caught.value)


def learnt(dataset: Dataset) -> list[tuple[str, str, int]]:
    return [(image.source, image.caption, image.repeats) for image in dataset.images]


def test_loose_images_are_there_as_pngs_in_the_order_people_count_in(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, {"fox10.png": RED, "Fox2.png": GREEN, "fox1.png": BLUE}, trigger_word="TOK")
    assert learnt(dataset) == [("fox1.png", "TOK", 1), ("Fox2.png", "TOK", 1), ("fox10.png", "TOK", 1)]
    assert [image.path for image in dataset.images] == sorted((tmp_path / "out").iterdir())
    for image, colour in zip(dataset.images, ["blue", "green", "red"], strict=True):
        with Image.open(image.path) as stored:
            assert (stored.format, stored.mode, stored.size) == ("PNG", "RGB", (image.width, image.height))
            assert stored.tobytes() == Image.new("RGB", stored.size, colour).tobytes()


def test_kohya_folders_give_repeats_and_a_caption_where_there_is_no_other(tmp_path: Path) -> None:
    files: Files = {
        **{f"img/10_sls frog/{name}": GREEN for name in ("a.png", "b.png")},
        "img/10_sls frog/b.txt": "sls frog on a leaf",
        "img/10_sls frog/close up/c.png": GREEN,
        "img/3_cpc rabbit/d.png": RED,
        "img/3_cpc rabbit/7_jumping/e.png": RED,
        "img/others/e.png": BLUE,
    }
    assert learnt(prepared(tmp_path, files)) == [
        ("img/3_cpc rabbit/7_jumping/e.png", "jumping", 7),
        ("img/3_cpc rabbit/d.png", "cpc rabbit", 3),
        ("img/10_sls frog/a.png", "sls frog", 10),
        ("img/10_sls frog/b.png", "sls frog on a leaf", 10),
        ("img/10_sls frog/close up/c.png", "sls frog", 10),
        ("img/others/e.png", "", 1),
    ]


def test_the_trigger_word_comes_before_the_folders_name_and_into_captions_without_it(tmp_path: Path) -> None:
    files: Files = {**FOX, "10_fox/b.txt": "a tok in the snow", "10_fox/b.caption": "something else"}
    dataset = prepared(tmp_path, files, trigger_word=" TOK ")
    assert [image.caption for image in dataset.images] == ["TOK", "TOK, a fox", "a tok in the snow"]
    assert [image.caption_from for image in dataset.images] == [None, "10_fox/a.txt", "10_fox/b.txt"]
    said = {remark.source: remark.text for remark in dataset.remarks}
    assert said == {
        "10_fox/a.png": "'TOK' put in front of the caption",
        "10_fox/b.png": "has its caption from 10_fox/b.txt; another one in 10_fox/b.caption is not used",
    }


def test_images_for_regularisation_are_not_learnt_from(tmp_path: Path) -> None:
    files: Files = {
        **FOX,
        "reg/1_animal/x.png": RED,
        "reg/1_animal/x.txt": "animal",
        "5_reg/y.png": RED,
        "reg/1_z.png": RED,
    }
    dataset = prepared(tmp_path, files)
    learnt_from = [image.source for image in dataset.images]
    assert "reg/1_animal/x.png" not in learnt_from
    assert {"5_reg/y.png", "reg/1_z.png"} <= set(learnt_from)
    assert [skip.source for skip in dataset.skipped] == ["reg/1_animal/x.png", "reg/1_animal/x.txt"]


def test_a_folder_with_no_repeats_is_left_out_and_named(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, {**FOX, "0_old/x.png": RED})
    assert len(dataset.images) == 3
    assert dataset.skipped == (Skipped("0_old/x.png", "its folder's number of repeats is 0"),)


def test_what_desktops_add_is_ignored_and_what_is_no_picture_named(tmp_path: Path) -> None:
    hidden = {"__MACOSX/10_fox/._a.png": b"x", "10_fox/._a.png": b"x", ".DS_Store": b"x", ".git/a.png": b"x"}
    files: Files = {**FOX, **hidden, "Thumbs.db": b"x", "desktop.ini": "x", "README.md": "hello", "clip.mp4": b"x"}
    dataset = prepared(tmp_path, files)
    assert learnt(dataset) == learnt(prepare_dataset(folder_of(tmp_path / "b", FOX), tmp_path / "out2", resolution=64))
    assert [skip.source for skip in dataset.skipped] == ["clip.mp4", "README.md"]


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"]


@pytest.mark.parametrize("name", [*ARCHIVES, "download"])
def test_an_archive_in_any_order_gives_what_the_folder_gives(tmp_path: Path, name: str) -> None:
    shuffled = dict(random.Random(name).sample(sorted(FOX.items()), len(FOX)))
    archive = archive_of(tmp_path / (name if "." in name else "a.zip"), shuffled)
    archive = archive.rename(tmp_path / name)
    wanted = prepared(tmp_path, FOX, trigger_word="TOK")
    seen = prepare_dataset(archive, tmp_path / "out2", resolution=64, trigger_word="TOK")
    assert learnt(seen) == learnt(wanted)
    assert seen.sha256 == wanted.sha256
    assert [image.path.read_bytes() for image in seen.images] == [image.path.read_bytes() for image in wanted.images]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out", "out2", "source", name])


def test_the_order_does_not_depend_on_how_the_disk_lists_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = prepared(tmp_path, FOX)
    listing = os.scandir

    class Backwards:
        """The real listing, the other way round."""

        def __init__(self, path: str) -> None:
            with listing(path) as entries:
                self._entries = reversed(list(entries))

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def __iter__(self) -> Backwards:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self._entries)

        def close(self) -> None:
            return

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", Backwards)
        seen = prepare_dataset(tmp_path / "source", tmp_path / "out2", resolution=64)
    assert (learnt(seen), seen.sha256) == (learnt(wanted), wanted.sha256)


CHANGES: dict[str, Files] = {
    "a pixel": {"10_fox/a.png": picture("darkred")},
    "a caption": {"10_fox/a.txt": "a red fox"},
    "the repeats": {"3_sea/c.png": BLUE, "2_sea/c.png": b""},
    "the order": {"10_fox/0.png": GREEN, "10_fox/b.png": b""},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_changes_with_what_is_learnt(tmp_path: Path, change: str) -> None:
    changed = {name: content for name, content in {**FOX, **CHANGES[change]}.items() if content}
    before = prepared(tmp_path, FOX)
    after = prepare_dataset(folder_of(tmp_path / "changed", changed), tmp_path / "out2", resolution=64)
    assert before.sha256 != after.sha256


def test_the_digest_is_the_same_with_other_containers_of_the_same_pixels(tmp_path: Path) -> None:
    other: Files = {**FOX, "10_fox/a.png": picture("red", kind="BMP"), "10_fox/a.txt": "a  fox\r\n"}
    other_dataset = prepare_dataset(folder_of(tmp_path / "other", other), tmp_path / "out2", resolution=64)
    assert other_dataset.sha256 == prepared(tmp_path, FOX).sha256


def test_buckets_keep_the_shape_and_crop_takes_the_middle(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("red", (100, 0, 200, 100))
    source = tmp_path / "source"
    source.mkdir()
    wide.save(source / "a.png")
    cropped = prepare_dataset(source, tmp_path / "crop", resolution=64, fit="crop").images[0]
    kept = prepare_dataset(source, tmp_path / "kept", resolution=128, fit="buckets").images[0]
    with Image.open(cropped.path) as image:
        assert image.size == (cropped.width, cropped.height) == (64, 64)
        # The resampling mixes a little of what is beside the cut into the outermost pixels.
        assert image.crop((3, 0, 61, 64)).getcolors() == [(58 * 64, (255, 0, 0))]
    with Image.open(kept.path) as image:
        assert image.size == (kept.width, kept.height) == (192, 64)
        assert [image.getpixel((x, 32)) for x in (2, 96, 189)] == [(255, 255, 255), (255, 0, 0), (255, 255, 255)]


def test_small_images_are_scaled_up_and_named(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, {"a.png": picture(size=(1, 1)), "b.png": picture(size=(64, 64))}, fit="crop")
    assert [(image.width, image.height) for image in dataset.images] == [(64, 64)] * 2
    assert dataset.remarks == (Remark("a.png", "smaller than 64x64, scaled up"),)


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.sampled_from([64, 128, 320, 512, 768, 1024, 2048]))
def test_every_shape_has_a_bucket(width: int, height: int, resolution: int) -> None:
    size = fitted_size(width, height, resolution=resolution, fit="buckets")
    assert size in buckets(resolution)
    assert all(side % 64 == 0 and 64 <= side <= 2 * resolution for side in size)
    assert size[0] * size[1] <= resolution**2
    assert fitted_size(height, width, resolution=resolution, fit="buckets") == size[::-1]
    if width == height:
        assert size == (resolution, resolution)


def test_the_buckets_are_those_of_sd_scripts() -> None:
    """Its defaults at 512: sides from 256 to 1024 in steps of 64, area at most 512 squared."""
    assert {(256, 1024), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448)} <= set(buckets(512))
    assert fitted_size(4000, 3000, resolution=512, fit="buckets") == (576, 448)
    assert fitted_size(3000, 4000, resolution=1024, fit="buckets") == (896, 1152)
    assert fitted_size(16, 9, resolution=512, fit="buckets") == (640, 384)
    assert fitted_size(9000, 10, resolution=512, fit="buckets") == (1024, 256)


@pytest.mark.parametrize("resolution", [0, -64, 32, 500, 4096])
def test_a_resolution_that_no_model_can_take_is_refused(tmp_path: Path, resolution: int) -> None:
    with pytest.raises(TrainingInputError, match=f"^resolution is {resolution}; it must be a multiple of 64") as caught:
        prepare_dataset(folder_of(tmp_path / "source", FOX), tmp_path / "out", resolution=resolution)
    assert caught.value.input_name == "resolution"


def test_an_unknown_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingInputError, match="fit is 'pad'; it must be one of buckets, crop"):
        prepared(tmp_path, FOX, fit="pad")


def test_all_problems_are_named_at_once_and_nothing_is_left_behind(tmp_path: Path) -> None:
    files: Files = {
        "cut.png": RED[:60],
        "empty.jpg": b"",
        "notes.jpg": "just some text, long enough",
        "phone.HEIC": b"x",
        "2024_06_trip/a.png": RED,
        "2024_06_trip/b.png": RED,
        "latin.png": RED,
        "latin.txt": "café".encode("latin-1"),
        "metadata.jsonl": '{"file_name": "gone.png", "text": "a fox"}',
    }
    assert re.sub(r"reason: .*", "reason", refused(tmp_path, files)).splitlines() == [
        "training_images cannot be used; 7 problems:",
        "  1. latin.txt is not UTF-8 (byte 0xe9 at 3); save it with the encoding UTF-8.",
        "  2. metadata.jsonl has a caption for gone.png in line 1, an image that is not there.",
        "  3. 2024_06_trip would repeat its images 2024 times; 1000 are the most. A folder's name begins with a number "
        "and _ only where the number is the repeats: rename it.",
        "  4. cut.png is damaged or cannot be read: image file is truncated. Send it whole, or leave it out.",
        "  5. empty.jpg is empty.",
        "  6. notes.jpg is no picture by its content. PNG, JPEG, WebP, BMP, GIF and TIFF are taken.",
        "  7. phone.HEIC is a HEIC file, which is not taken. Convert it to JPEG or PNG, for example with `magick "
        "a.heic a.jpg` (ImageMagick), or on a Mac with `sips -s format jpeg a.heic --out a.jpg`.",
    ]


def test_one_problem_is_one_sentence_and_thousands_are_cut(tmp_path: Path) -> None:
    assert refused(tmp_path, {**FOX, "x.png": b""}) == "training_images cannot be used: x.png is empty."
    lines = refused(tmp_path, {f"{number}.png": b"" for number in range(50)}).splitlines()
    assert lines[0] == "training_images cannot be used; 51 problems:"
    assert lines[-1] == "  … and 31 more"
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "training_images holds no images. PNG, JPEG, WebP, BMP, GIF and TIFF are taken."),
        (
            {"a.txt": "a fox", "b/c.mp4": b"x"},
            "training_images holds no images; there are a.txt, b/c.mp4. PNG, JPEG, WebP, BMP, GIF and TIFF are taken.",
        ),
    ],
    ids=["empty", "others"],
)
def test_a_dataset_without_images_is_refused(tmp_path: Path, files: Files, said: str) -> None:
    (tmp_path / "source").mkdir()
    assert refused(tmp_path, files) == said


def test_a_source_that_is_not_there_or_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingInputError, match=re.escape("nothing is not there.")):
        prepare_dataset(tmp_path / "nothing", tmp_path / "out", resolution=64)
    (tmp_path / "a.rar").write_bytes(b"Rar!\x1a\x07\x01\x00")
    with pytest.raises(
        TrainingInputError, match=r"^training_images 'a\.rar' is neither a zip nor a tar that can be read"
    ):
        prepare_dataset(tmp_path / "a.rar", tmp_path / "out", resolution=64)
    assert [path.name for path in tmp_path.iterdir()] == ["a.rar"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_was_cut_is_refused(tmp_path: Path, name: str) -> None:
    archive = archive_of(tmp_path / name, {f"{n}.png": random.Random(n).randbytes(5000) for n in range(3)})
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(
        TrainingInputError, match=rf"^training_images '{name}' (cannot be unpacked|is neither)"
    ) as caught:
        prepare_dataset(archive, tmp_path / "out", resolution=64)
    assert caught.value.input_name == "training_images"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_hostile_archive_is_refused_in_the_words_of_a_training(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {"a.png": RED, "../evil.png": RED})
    with pytest.raises(TrainingInputError) as caught:
        prepare_dataset(archive, tmp_path / "deep" / "out", resolution=64)
    assert str(caught.value) == (
        "training_images 'a.zip' holds a file named '../evil.png', which leads out of the archive."
    )
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(TrainingInputError, match=r"^training_images holds 'a\.png', which is a link or device"):
        prepare_dataset(tmp_path / "b.tar", tmp_path / "deep" / "out", resolution=64)
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_archive_that_unpacks_to_too_much_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "MAX_TOTAL_BYTES", 1024**2)
    archive = archive_of(tmp_path / "a.zip", {f"{number}.png": bytes(1024**2) for number in range(3)})
    with pytest.raises(TrainingInputError, match=r"^training_images 'a\.zip' unpacks to more than"):
        prepare_dataset(archive, tmp_path / "out", resolution=64)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_too_many_files_are_not_all_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "MAX_FILES", 3)
    prepared(tmp_path / "three", {"a.png": RED, "b.png": RED, "c.png": RED, ".hidden": b"x"})
    assert refused(tmp_path / "four", FOX).endswith("source holds more than 3 files.")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the operating system's own answer, which a superuser's tests would never get."""
    listing = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("10_fox"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listing(path)

    source = folder_of(tmp_path / "source", FOX)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(TrainingInputError) as caught:
        prepare_dataset(source, tmp_path / "out", resolution=64)
    monkeypatch.undo()
    assert str(caught.value) == f"training_images: {source / '10_fox'} cannot be read: Permission denied."


def test_letters_with_accents_are_one_however_a_disk_writes_them(tmp_path: Path) -> None:
    """macOS gives decomposed letters, lists made elsewhere hold composed ones."""
    files: Files = {"cafe\u0301.png": RED, "caption.csv": "file,text\ncaf\u00e9.png,a café"}
    assert learnt(prepared(tmp_path, files)) == [("caf\u00e9.png", "a café", 1)]


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    folder_of(tmp_path / "out", {"mine.txt": "x"})
    with pytest.raises(StorageError, match="out is in use; the dataset needs a folder of its own"):
        prepared(tmp_path, FOX)
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


def test_an_empty_folder_is_used_and_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    source = folder_of(tmp_path / "source", {"a.png": RED})
    (source / "b.png").symlink_to(source / "a.png")
    (source / "gone.png").symlink_to(source / "nothing")
    (source / "loop").symlink_to(source)
    dataset = prepare_dataset(source, tmp_path / "out", resolution=64)
    assert [image.source for image in dataset.images] == ["a.png", "b.png"]
    assert [skip.source for skip in dataset.skipped] == ["gone.png", "loop"]


def test_the_report_says_what_is_learnt_what_was_changed_and_what_left_out(tmp_path: Path) -> None:
    files: Files = {
        **FOX,
        "sea.png": picture(size=(40, 40)),
        "note.txt": "no image is called so",
        **{f"{number}.npz": b"x" for number in range(10)},
        "e\x1b[31mvil.md": "x",
    }
    dataset = prepared(tmp_path, files, resolution=128)
    assert report(dataset, batch_size=4, grad_accumulation_steps=3, steps=100) == [
        f"Dataset: 4 images, 23 with repeats, sha256 {dataset.sha256}",
        "Captions: 1 of 4 images with one of their own",
        "Captions: 'sea' alone: 2_sea/c.png",
        "Captions: 'fox' alone: 10_fox/b.png",
        "Captions: none (give trigger_word, or caption files): sea.png",
        "Sizes: 128x128 (4)",
        "Repeats: 2_sea: 2 x 1",
        "Repeats: 10_fox: 10 x 2",
        "Repeats: (top): 1 x 1",
        "Steps: 100, each of 3 x 4 images; with 6 batches in an epoch, 50 epochs",
        "Note: smaller than 128x128, scaled up: 2_sea/c.png, 10_fox/a.png, 10_fox/b.png, sea.png",
        "Skipped: a text without an image of the same name: note.txt",
        "Skipped: no image and no caption: 0.npz, 1.npz, 2.npz, 3.npz, 4.npz, 5.npz, 6.npz, 7.npz and 3 more",
    ]


def test_no_file_name_reaches_a_terminal_with_control_characters(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, {"a\x1b[2J\n.png": RED, "b\x07.md": "x"})
    lines = report(dataset, batch_size=1, grad_accumulation_steps=1, steps=1)
    assert all(line.isprintable() for line in lines)
    assert any("'b\\x07.md'" in line for line in lines)
    with pytest.raises(TrainingInputError) as caught:
        prepare_dataset(folder_of(tmp_path / "b", {"a\x1b[2J.png": b""}), tmp_path / "out2", resolution=64)
    assert str(caught.value) == "training_images cannot be used: 'a\\x1b[2J.png' is empty."


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)))
def test_names_of_any_letters_have_one_order(names: list[str]) -> None:
    wanted = sorted(set(names), key=natural_key)
    assert sorted(sorted(set(names), reverse=True), key=natural_key) == wanted
    for first, second in itertools.pairwise(wanted):
        assert natural_key(first) < natural_key(second)


def test_names_sort_as_people_count() -> None:
    names = ["10_b/x.png", "2_a/y10.png", "2_a/y9.png", "2_A/y9b.png", "top.png", "2_a.png"]
    assert sorted(names, key=natural_key) == [
        *("2_a/y9.png", "2_A/y9b.png", "2_a/y10.png", "2_a.png", "10_b/x.png", "top.png")
    ]


def test_the_digest_is_over_sizes_pixels_captions_and_repeats(tmp_path: Path) -> None:
    """Computed here once more from the files on disk, so that it means what it says."""
    dataset = prepared(tmp_path, FOX)
    digest = hashlib.sha256()
    for image in dataset.images:
        with Image.open(image.path) as stored:
            pixels = hashlib.sha256(stored.tobytes()).hexdigest()
        digest.update(f'[{image.width}, {image.height}, "{pixels}", "{image.caption}", {image.repeats}]\n'.encode())
    assert dataset.sha256 == digest.hexdigest()
