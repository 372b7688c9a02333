"""Unpacking for any input: the words of its messages, its limits, and names of every kind.

What each hostile or damaged archive leads to is in tests/workflow/test_media.py, through the whole of input_file.
"""

from __future__ import annotations

import struct
import tarfile
import zipfile
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.archives import ArchiveInput, archive_suffix, unpack
from comfyui.errors import RequestError
from tests.training.dataset_parts import archive_of

GIVEN = ArchiveInput("pictures", "the drawer", RequestError, max_files=3, max_total_bytes=2 * 1024**3)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_an_archive_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    archive = archive_of(tmp_path / name, {"b.txt": "b", "a.txt": "a"}).rename(tmp_path / "download")
    assert archive_suffix(archive) == (".zip" if name == "a.zip" else ".tar")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert unpack(archive, folder, GIVEN) == ["b.txt", "a.txt"]
    assert (folder / "b.txt").read_text() == "b"


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut", b"\x1f\x8b\x08\x00cut"])
def test_what_is_no_archive_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    assert archive_suffix(tmp_path / "a.zip") is None


def test_messages_speak_of_the_input_they_are_for(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        unpack(archive_of(tmp_path / "a.zip", {"../x": "x"}), tmp_path, GIVEN)
    assert str(caught.value) == "pictures 'a.zip' holds a file named '../x', which leads out of the drawer."
    with pytest.raises(RequestError) as caught:
        unpack(archive_of(tmp_path / "a.zip", {f"{number}": "x" for number in range(4)}), tmp_path, GIVEN)
    assert str(caught.value) == "pictures 'a.zip' holds more than 3 files."


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_refused_archive_is_closed(tmp_path: Path, name: str) -> None:
    archive = archive_of(tmp_path / name, {"good": "x", "../evil": "x"})
    with pytest.raises(RequestError) as caught:
        unpack(archive, tmp_path, GIVEN)
    assert caught.value.__traceback__ is not None  # which keeps alive whatever the frames of the error hold
    assert str(archive) not in [opened.path for opened in psutil.Process().open_files()]


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    """No tool writes one: the name is cut out of a zip with one member, and all that counts it put right."""
    archive = archive_of(tmp_path / "a.zip", {"unnamed": "hello"})
    raw = bytearray(archive.read_bytes().replace(b"unnamed", b""))
    member, directory, end = (raw.index(signature) for signature in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"))
    struct.pack_into("<H", raw, member + 26, 0)
    struct.pack_into("<H", raw, directory + 28, 0)
    struct.pack_into("<II", raw, end + 12, end - directory, directory)
    archive.write_bytes(raw)
    with pytest.raises(RequestError, match=r"^pictures 'a\.zip' holds a file named '', which leads out"):
        unpack(archive, tmp_path, GIVEN)


def test_a_member_that_says_it_is_longer_than_the_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    # Both of its sizes in the directory (APPNOTE.TXT, 4.3.12).
    struct.pack_into("<II", raw, raw.index(b"PK\x01\x02") + 20, 1000, 1000)
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(RequestError, match=r"^pictures 'a\.zip' cannot be unpacked: it is cut short or damaged\.$"):
        unpack(tmp_path / "a.zip", tmp_path, GIVEN)


NAMES = st.text(st.sampled_from("ab./\\ :\n\u202e\u00e9é\U0001f408~$-") | st.characters(), min_size=1, max_size=20)


@given(name=NAMES, kind=st.sampled_from([".zip", ".tar"]))
def test_whatever_a_member_is_called_nothing_lands_outside(
    tmp_path_factory: pytest.TempPathFactory, name: str, kind: str
) -> None:
    root = tmp_path_factory.mktemp("archive")
    folder = root / "deep" / "folder"
    folder.mkdir(parents=True)
    archive = root / f"a{kind}"
    try:
        archive_of(archive, {name: "x"})
    except (ValueError, IndexError, tarfile.TarError):
        return  # no archive can hold that name
    try:
        names = unpack(archive, folder, GIVEN)
    except RequestError:
        names = []
    below = {path for path in root.rglob("*") if not path.is_dir()} - {archive}
    assert below == {folder / name for name in names}
