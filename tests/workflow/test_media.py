"""input_file: real archives, honest and hostile, and what lies on disk afterwards."""

from __future__ import annotations

import io
import os
import random
import re
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from comfyui.errors import InputFileError, StoppedError
from comfyui.workflow import media
from comfyui.workflow.media import place_input_file

FILES = {"a.png": b"first", "references/r1.jpg": b"second" * 500, "references/deep/er.wav": b"third"}


def make_zip(path: Path, members: Mapping[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def make_tar(path: Path, members: Mapping[str, bytes], compression: str = "") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_of_special(path: Path, kind: bytes, target: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("evil")
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return path


def encrypted_zip(path: Path) -> Path:
    """Python cannot encrypt: a plain zip with the flag set that says so, in the member and in the directory."""
    raw = bytearray(make_zip(path, {"a.png": b"secret"}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + offset] |= 1
    path.write_bytes(raw)
    return path


def damaged(path: Path, change: Callable[[bytearray], object]) -> Path:
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def input_dir(tmp_path: Path) -> Path:
    """Deep enough that a name with two `..` would still land inside tmp_path, where a test can see it."""
    return tmp_path / "run" / "comfy" / "input"


def test_a_single_image_is_there_as_input_and_under_its_own_name(tmp_path: Path, input_dir: Path) -> None:
    source = tmp_path / "My photo (1).PNG"
    source.write_bytes(b"picture")
    assert place_input_file(source, input_dir) == ["My photo (1).PNG", "input.png"]
    assert files_below(input_dir) == {"My photo (1).PNG": b"picture", "input.png": b"picture"}


def test_a_file_called_input_is_there_once(tmp_path: Path, input_dir: Path) -> None:
    source = tmp_path / "input.mp4"
    source.write_bytes(b"film")
    assert place_input_file(source, input_dir) == ["input.mp4"]


@pytest.mark.parametrize(("image_format", "suffix"), [("PNG", ".png"), ("WEBP", ".webp"), ("GIF", ".gif")])
def test_the_type_of_an_image_without_file_ending_is_read_from_it(
    tmp_path: Path, input_dir: Path, image_format: str, suffix: str
) -> None:
    source = tmp_path / "download"
    Image.new("RGB", (4, 4)).save(source, image_format)
    assert place_input_file(source, input_dir) == [f"download{suffix}", f"input{suffix}"]


@pytest.mark.parametrize("name", ["cat.jpeg", "cat.jpg", "cat"])
def test_a_jpeg_is_there_under_both_usual_endings(tmp_path: Path, input_dir: Path, name: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / name, "JPEG")
    own = name if "." in name else "cat.jpeg"
    assert place_input_file(tmp_path / name, input_dir) == [own, "input.jpeg", "input.jpg"]


def test_what_a_desktop_adds_to_an_archive_is_left_out(tmp_path: Path, input_dir: Path) -> None:
    files = {"a.png": b"a", "__MACOSX/._a.png": b"x", ".DS_Store": b"x", "sub/Thumbs.db": b"x"}
    assert place_input_file(make_zip(tmp_path / "a.zip", files), input_dir) == ["a.png"]


def test_an_unknown_ending_does_not_hide_what_the_file_is(tmp_path: Path, input_dir: Path) -> None:
    source = tmp_path / "photo.v2"
    Image.new("RGB", (4, 4)).save(source, "PNG")
    assert place_input_file(source, input_dir) == ["input.png", "photo.v2.png"]


@pytest.mark.parametrize(
    "content", [b"", b"some text", b"\x89PNG\r\n\x1a\nbroken"], ids=["empty", "text", "half a PNG"]
)
def test_what_is_neither_known_by_name_nor_by_content_is_refused(
    tmp_path: Path, input_dir: Path, content: bytes
) -> None:
    source = tmp_path / "notes.txt"
    source.write_bytes(content)
    with pytest.raises(InputFileError) as caught:
        place_input_file(source, input_dir)
    assert str(caught.value) == (
        "input_file 'notes.txt' is no image, and its name does not say what it is. Send an image, a video or a sound "
        "with its usual file ending, or a zip or tar of them."
    )


@pytest.mark.parametrize("name", ["all.zip", "all.tar", "all.tar.gz", "all.tgz", "all.tar.bz2", "all.tar.xz", "all"])
def test_an_archive_keeps_its_folders(tmp_path: Path, input_dir: Path, name: str) -> None:
    """references/r1.jpg of a zip is reported missing by the nearest project."""
    if name.endswith("zip"):
        make_zip(tmp_path / name, FILES)
    else:
        make_tar(
            tmp_path / name,
            FILES,
            {".tgz": "gz"}.get(Path(name).suffix, name.rpartition("tar.")[2] if "tar." in name else ""),
        )
    assert place_input_file(tmp_path / name, input_dir) == sorted(FILES)
    assert files_below(input_dir) == FILES


def test_a_stop_ends_the_unpacking(tmp_path: Path, input_dir: Path) -> None:
    class StopAfter(threading.Event):
        """Set once it was asked for the second time."""

        def is_set(self) -> bool:
            asked = super().is_set()
            self.set()
            return asked

    with pytest.raises(StoppedError):
        place_input_file(make_zip(tmp_path / "a.zip", FILES), input_dir, StopAfter())
    assert [content for content in files_below(input_dir).values() if content] == [FILES["a.png"]]


def test_a_zip_without_ending_is_unpacked(tmp_path: Path, input_dir: Path) -> None:
    assert place_input_file(make_zip(tmp_path / "download", FILES), input_dir) == sorted(FILES)


def test_folders_that_an_archive_lists_are_no_files(tmp_path: Path, input_dir: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("folder")
        archive.writestr("folder/a.png", b"x")
    (tmp_path / "src" / "folder").mkdir(parents=True)
    (tmp_path / "src" / "folder" / "a.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "src" / "folder", "folder")
    assert place_input_file(tmp_path / "a.zip", input_dir) == ["folder/a.png"]
    assert place_input_file(tmp_path / "a.tar", input_dir) == ["folder/a.png"]


OUTSIDE = "which leads out of the input folder"
HOSTILE_NAMES = ["/evil-of-a-test.png", "../evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png", "..", "."]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_member_that_leads_outside_is_refused_by_name(
    tmp_path: Path, input_dir: Path, make: Callable[[Path, Mapping[str, bytes]], Path], name: str
) -> None:
    source = make(tmp_path / ("a.zip" if make is make_zip else "a.tar"), {"good.png": b"good", name: b"evil"})
    before = files_below(tmp_path)
    with pytest.raises(InputFileError, match=re.escape(f"holds a file named {name!r}, {OUTSIDE}")):
        place_input_file(source, input_dir)
    after = {name: content for name, content in files_below(tmp_path).items() if name != "run/comfy/input/good.png"}
    assert after == before
    assert not Path("/evil-of-a-test.png").exists()


LINK_KINDS = {
    "symlink": (tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": (tarfile.LNKTYPE, "../../../secret"),
    "character device": (tarfile.CHRTYPE, ""),
    "block device": (tarfile.BLKTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("kind", LINK_KINDS)
def test_a_link_or_device_in_a_tar_is_refused_by_name(tmp_path: Path, input_dir: Path, kind: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    source = tar_of_special(tmp_path / "a.tar", *LINK_KINDS[kind])
    with pytest.raises(InputFileError, match="holds 'evil', which is a link or device, not a file"):
        place_input_file(source, input_dir)
    assert list(input_dir.iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO], ids=["symlink", "device", "pipe"])
def test_a_link_or_device_in_a_zip_is_refused_by_name(tmp_path: Path, input_dir: Path, kind: int) -> None:
    source = make_zip(tmp_path / "a.zip", {"evil": b"/etc/passwd"}, mode=kind | 0o777)
    with pytest.raises(InputFileError, match="holds 'evil', which is a link or device, not a file"):
        place_input_file(source, input_dir)
    assert list(input_dir.iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_that_unpacks_to_too_much_is_stopped(
    tmp_path: Path, input_dir: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(media, "MAX_TOTAL_BYTES", 4 * 1024**2)
    bomb = {f"{number}.png": bytes(1024**2 + 1) for number in range(8)}
    source = make_zip(tmp_path / "a.zip", bomb) if suffix == ".zip" else make_tar(tmp_path / "a.tar.gz", bomb, "gz")
    assert source.stat().st_size < 100_000
    with pytest.raises(InputFileError, match=r"^input_file 'a\.\S+' unpacks to more than"):
        place_input_file(source, input_dir)
    assert sum(len(content) for content in files_below(input_dir).values()) <= 4 * 1024**2


def test_an_archive_of_too_many_files_is_stopped(
    tmp_path: Path, input_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MAX_FILES", 3)
    source = make_zip(tmp_path / "a.zip", {f"{number}.png": b"" for number in range(4)})
    with pytest.raises(InputFileError, match="holds more than 3 files"):
        place_input_file(source, input_dir)
    assert len(files_below(input_dir)) == 3


@pytest.mark.parametrize("second", ["a/x.png", "a/X.PNG", "./a/x.png", "a//x.png"])
def test_a_file_that_is_there_twice_is_refused(tmp_path: Path, input_dir: Path, second: str) -> None:
    buffer = tmp_path / "a.tar"
    with tarfile.open(buffer, "w") as archive:
        for name, content in (("a/x.png", b"one"), (second, b"two")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(InputFileError, match=re.escape(f"holds {second!r} twice; nothing of it was used")):
        place_input_file(buffer, input_dir)
    assert files_below(input_dir) == {"a/x.png": b"one"}


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c")], ids=" then ".join)
def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path: Path, input_dir: Path, names: tuple[str, ...]) -> None:
    source = make_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x"))
    with pytest.raises(InputFileError, match=f"holds '{names[1]}', where a file and a folder have the same name"):
        place_input_file(source, input_dir)


@pytest.mark.parametrize(
    "name", ["n" * 256, "/".join(["n" * 200] * 25), "d/" * 40 + "f"], ids=["part", "path", "depth"]
)
def test_a_name_too_long_for_a_disk_is_refused(tmp_path: Path, input_dir: Path, name: str) -> None:
    with pytest.raises(InputFileError, match=f"holds a file with too long a name: '{name[:80]}'"):
        place_input_file(make_zip(tmp_path / "a.zip", {name: b"x"}), input_dir)


def test_names_in_other_scripts_are_kept_and_names_that_are_no_text_refused(tmp_path: Path, input_dir: Path) -> None:
    good = {"写真/ねこ 🐈.png": b"x", "Screenshot 3.04.05\u202fPM.png": b"y"}
    assert place_input_file(make_tar(tmp_path / "a.tar", good), input_dir) == sorted(good)
    with pytest.raises(InputFileError, match=re.escape(r"whose name is not UTF-8: 'caf\udce9.png'")):
        place_input_file(make_tar(tmp_path / "b.tar", {os.fsdecode(b"caf\xe9.png"): b"x"}), input_dir)


def test_an_encrypted_zip_is_refused_with_the_reason(tmp_path: Path, input_dir: Path) -> None:
    with pytest.raises(InputFileError, match=r"holds 'a\.png' encrypted; send an archive without a password"):
        place_input_file(encrypted_zip(tmp_path / "a.zip"), input_dir)


def test_a_file_that_is_no_archive_whatever_its_name_says_is_refused(tmp_path: Path, input_dir: Path) -> None:
    source = tmp_path / "a.tar.gz"
    source.write_bytes(b"<html>404</html>")
    with pytest.raises(InputFileError) as caught:
        place_input_file(source, input_dir)
    assert str(caught.value) == "input_file 'a.tar.gz' cannot be unpacked: file could not be opened successfully."


NOISE = {f"{number}.png": random.Random(number).randbytes(5000) for number in range(3)}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8, "at a member"])
def test_an_archive_that_was_cut_is_refused(tmp_path: Path, input_dir: Path, suffix: str, kept: float | str) -> None:
    source = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        make_zip(source, NOISE)
    else:
        make_tar(source, NOISE, suffix.removeprefix(".tar").removeprefix("."))
    # A member of the plain tar takes a header of 512 bytes and ten blocks of 512.
    length = int(source.stat().st_size * kept) if isinstance(kept, float) else 11 * 512
    os.truncate(source, length)
    with pytest.raises(InputFileError, match="cannot be unpacked"):
        place_input_file(source, input_dir)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_no_damaged_byte_passes_and_none_raises_anything_else(tmp_path: Path, suffix: str) -> None:
    """Every archive here has checksums; whichever byte is wrong, either it is refused or nothing of it is different."""
    source = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        make_zip(source, FILES)
    else:
        make_tar(source, FILES, suffix.removeprefix(".tar."))
    whole = source.read_bytes()
    choose = random.Random(7)
    refused = 0
    for number in range(120):
        raw = bytearray(whole)
        raw[choose.randrange(len(raw))] ^= 1 << choose.randrange(8)
        source.write_bytes(raw)
        try:
            place_input_file(source, tmp_path / str(number))
        except InputFileError:
            refused += 1
        else:
            contents = sorted(files_below(tmp_path / str(number)).values())
            assert contents == sorted(FILES.values())
    assert refused > 50


def test_a_damaged_header_in_a_plain_tar_does_not_end_it_in_silence(tmp_path: Path, input_dir: Path) -> None:
    def spoil(raw: bytearray) -> None:
        raw[512 + 512 + 10] ^= 0xFF  # in the name of the second member: a header's checksum covers it

    source = damaged(make_tar(tmp_path / "a.tar", {"a.png": b"a", "b.png": b"b"}), spoil)
    with pytest.raises(InputFileError) as caught:
        place_input_file(source, input_dir)
    assert str(caught.value) == "input_file 'a.tar' cannot be unpacked: it is cut short or damaged."


def test_a_tar_by_the_systems_own_tar_is_taken(tmp_path: Path, input_dir: Path) -> None:
    for name, content in FILES.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    subprocess.run(["tar", "czf", tmp_path / "a.tgz", "-C", tmp_path / "src", "."], check=True)
    assert place_input_file(tmp_path / "a.tgz", input_dir) == sorted(FILES)


def test_a_full_disk_is_not_called_a_damaged_archive(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a.png").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        place_input_file(make_zip(tmp_path / "a.zip", {"a.png": bytes(100_000)}), folder)
