"""The tar: ordinary to others, the same bytes each time, and never half there."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui.errors import WeightsError
from comfyui.weights import disk
from comfyui.weights.archive import ArchiveWriter
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, room_for
from comfyui.weights.verify import Digest, Verifier
from tests.weights.samples import files_below, safetensors, sha256, write_tar

LONG = "loras/" + "long " * 40 + "x.safetensors"
FILES = {
    "checkpoints/m.safetensors": safetensors(1, 3000),
    "loras/a.safetensors": safetensors(2, 102400),
    LONG: safetensors(3, 700),
    "vae/日本.safetensors": safetensors(4, 512),
}


def test_python_reads_it(tmp_path: Path) -> None:
    out = tmp_path / "w.tar"
    manifest = write_tar(out, FILES)
    data = out.read_bytes()
    assert len(data) % 10240 == 0
    with tarfile.open(out) as tar:
        assert tar.getnames() == [MANIFEST_NAME, *FILES]
        inside = tar.extractfile(MANIFEST_NAME)
        assert inside is not None
        assert Manifest.parse(inside.read()) == manifest
        for member, (path, body) in zip(tar.getmembers()[1:], FILES.items(), strict=True):
            extracted = tar.extractfile(member)
            assert extracted is not None
            assert extracted.read() == body
            assert (member.name, member.mode, member.mtime, member.uid, member.uname) == (path, 0o644, 0, 0, "")
    for weight in manifest.weights:
        assert weight.offset is not None
        assert data[weight.offset : weight.offset + weight.size] == FILES[weight.path]
        assert (weight.size, weight.sha256) == (len(FILES[weight.path]), sha256(FILES[weight.path]))


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar command here")
def test_the_tar_command_reads_it(tmp_path: Path) -> None:
    out, to = tmp_path / "w.tar", tmp_path / "to"
    to.mkdir()
    write_tar(out, FILES)
    done = subprocess.run(["tar", "-xf", out, "-C", to], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert files_below(to) == sorted([MANIFEST_NAME, *FILES])
    assert all((to / path).read_bytes() == body for path, body in FILES.items())


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_tar(tmp_path / "1.tar", FILES)
    write_tar(tmp_path / "2.tar", FILES)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_an_empty_one(tmp_path: Path) -> None:
    assert write_tar(tmp_path / "w.tar", {}).weights == ()
    with tarfile.open(tmp_path / "w.tar") as tar:
        assert tar.getnames() == [MANIFEST_NAME]


def test_an_old_tar_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "w.tar"
    out.write_bytes(b"old")
    with ArchiveWriter(out, manifest_room=1000) as archive:
        archive.add("vae/a.safetensors", None, None, [FILES["loras/a.safetensors"]], verifier("vae/a.safetensors"))
        assert out.read_bytes() == b"old"
        assert len(files_below(tmp_path)) == 2
        archive.finish()
    assert files_below(tmp_path) == ["w.tar"]
    assert tarfile.is_tarfile(out)


def verifier(path: str, expected: Digest | None = None) -> Verifier:
    return Verifier(path, allow_pickle=False, expected=expected)


class Odd(BaseException):
    """Like KeyboardInterrupt, not an Exception."""


@pytest.mark.parametrize("error", [Odd, OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_tar(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "w.tar"
    out.write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield FILES["loras/a.safetensors"][:1000]
        raise error

    with pytest.raises(error), ArchiveWriter(out, manifest_room=1000) as archive:
        archive.add("vae/a.safetensors", None, None, chunks(), verifier("vae/a.safetensors"))
    assert files_below(tmp_path) == ["w.tar"]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("path", ["../a.safetensors", "loras/a.safetensors", "loras/A.safetensors"])
def test_bad_and_repeated_paths(tmp_path: Path, path: str) -> None:
    body = FILES["loras/a.safetensors"]
    with ArchiveWriter(tmp_path / "w.tar", manifest_room=1000) as archive:
        archive.add("loras/a.safetensors", None, None, [body], verifier("loras/a.safetensors"))
        with pytest.raises(WeightsError):
            archive.add(path, None, None, [body], verifier(path))
    assert files_below(tmp_path) == []


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    body = FILES["loras/a.safetensors"]
    with pytest.raises(WeightsError, match="is cut"), ArchiveWriter(tmp_path / "w.tar", manifest_room=1000) as archive:
        archive.add("loras/a.safetensors", None, None, [body[:-1]], verifier("loras/a.safetensors"))
    assert files_below(tmp_path) == []


def test_a_manifest_without_room(tmp_path: Path) -> None:
    body = FILES["loras/a.safetensors"]
    with ArchiveWriter(tmp_path / "w.tar", manifest_room=room_for([])) as archive:
        for i in range(9):
            archive.add(f"vae/{i}.safetensors", None, None, [body], verifier(f"vae/{i}.safetensors"))
        with pytest.raises(ValueError, match="were reserved"):
            archive.finish()
    assert files_below(tmp_path) == []


def test_not_enough_room_is_said_first(tmp_path: Path) -> None:
    with (
        pytest.raises(WeightsError, match=r"no room.*are needed, \d+ bytes .* are free") as caught,
        ArchiveWriter(tmp_path / "w.tar", manifest_room=1000) as archive,
    ):
        archive.add("loras/a.safetensors", None, 2**60, [], verifier("loras/a.safetensors"))
    assert caught.value.expected == f"{2**60} bytes free"
    assert files_below(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(b"x")

    with pytest.raises(WeightsError, match="12 bytes are needed"), disk.room_errors(tmp_path, "vae/a", "12 bytes"):
        full(tmp_path)
    with pytest.raises(IsADirectoryError), disk.room_errors(tmp_path, "vae/a", "12 bytes"):
        tmp_path.open("wb")


def test_the_verifier_compares_with_what_is_expected() -> None:
    body = safetensors(1, 400)
    right = Digest(len(body), sha256(body))
    path = "loras/a.safetensors"
    good = verifier(path, right)
    good.feed(body)
    assert good.finish() == right
    with pytest.raises(WeightsError, match=f"expected {len(body)} bytes, seen at least {len(body) + 1}"):
        verifier(path, right).feed(body + b"x")
    short = verifier(path, right)
    short.feed(body[:-1])
    with pytest.raises(WeightsError, match=f"seen {len(body) - 1} bytes"):
        short.finish()
    flipped = verifier(path, right)
    flipped.feed(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(WeightsError, match="is damaged") as caught:
        flipped.finish()
    assert caught.value.expected == right.sha256
