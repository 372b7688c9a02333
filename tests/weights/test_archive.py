"""The tar: ordinary to others, the same bytes each time, and never half there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from comfyui.errors import EngineError, StorageError, WeightsError
from comfyui.weights import disk
from comfyui.weights.judge.verify import Digest, Verifier
from comfyui.weights.manifest import MANIFEST_NAME, Manifest
from comfyui.weights.tar.archive import ArchiveWriter
from comfyui.weights.tar.journal import JournalFile
from comfyui.weights.tar.layout import Planned, plan_layout
from comfyui.weights.transfer.faults import InterruptedPieceError
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


URL = "https://example.com/a.safetensors"
LATER = plan_layout([], later=[("loras", URL), ("vae", URL)])


def test_an_old_tar_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "w.tar"
    out.write_bytes(b"old")
    with ArchiveWriter(out, LATER) as archive:
        archive.append("vae/a.safetensors", URL, [FILES["loras/a.safetensors"]], verifier("vae/a.safetensors"))
        assert out.read_bytes() == b"old"
        assert len(files_below(tmp_path)) == 2
        archive.finish()
    assert files_below(tmp_path) == ["w.tar"]
    assert tarfile.is_tarfile(out)


def verifier(path: str, expected: Digest | None = None) -> Verifier:
    return Verifier(path, allow_pickle=False, expected=expected)


def planned_tar(out: Path, *, keep: bool = False, piece: int = 4096) -> Manifest:
    """A tar of FILES by its layout, written backwards in pieces, with every place first full of other bytes."""
    layout = plan_layout([Planned(path, URL, len(body)) for path, body in FILES.items()])
    files = [JournalFile(file.path, URL, file.size, place.offset, None, None) for place in layout.places
             for file in [place.planned]]  # fmt: skip
    with ArchiveWriter(out, layout, keep_unfinished=keep) as archive:
        assert archive.prepare(files, 4096) == {}
        for number, (place, body) in reversed(list(enumerate(zip(layout.places, FILES.values(), strict=True)))):
            for start in reversed(range(0, len(body), piece)):
                archive.target.write(place.offset + start, memoryview(body[start : start + piece]))
                archive.record(number, start // 4096)
        return archive.finish([Digest(len(body), sha256(body)) for body in FILES.values()])


def test_a_planned_tar_is_the_same_whatever_lay_there(tmp_path: Path) -> None:
    first = planned_tar(tmp_path / "1.tar")
    # What another bake left: longer, and full of other bytes.
    (tmp_path / ".2.tar.part").write_bytes(b"\xff" * 300_000)
    assert planned_tar(tmp_path / "2.tar", piece=1000) == first
    data = (tmp_path / "1.tar").read_bytes()
    assert data == (tmp_path / "2.tar").read_bytes()
    assert files_below(tmp_path) == ["1.tar", "2.tar"]
    with tarfile.open(tmp_path / "2.tar") as tar:
        for path, body in FILES.items():
            inside = tar.extractfile(path)
            assert inside is not None
            assert inside.read() == body


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="there is no bsdtar here")
def test_bsdtar_reads_it(tmp_path: Path) -> None:
    planned_tar(tmp_path / "w.tar")
    (to := tmp_path / "to").mkdir()
    env = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    subprocess.run(["bsdtar", "-xf", tmp_path / "w.tar", "-C", to], check=True, env=env)
    assert files_below(to) == sorted([MANIFEST_NAME, *FILES])
    assert all((to / path).read_bytes() == body for path, body in FILES.items())


class Odd(BaseException):
    """Like KeyboardInterrupt, not an Exception."""


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [Odd, OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_tar(tmp_path: Path, error: type[BaseException], keep: bool) -> None:
    out = tmp_path / "w.tar"
    out.write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield FILES["loras/a.safetensors"][:1000]
        raise error

    with pytest.raises(error), ArchiveWriter(out, LATER, keep_unfinished=keep) as archive:
        archive.append("vae/a.safetensors", URL, chunks(), verifier("vae/a.safetensors"))
    assert files_below(tmp_path) == [*([".w.tar.part"] if keep else []), "w.tar"]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("path", ["../a.safetensors", "loras/a.safetensors", "loras/A.safetensors"])
def test_bad_and_repeated_paths(tmp_path: Path, path: str) -> None:
    body = FILES["loras/a.safetensors"]
    with ArchiveWriter(tmp_path / "w.tar", LATER) as archive:
        archive.append("loras/a.safetensors", URL, [body], verifier("loras/a.safetensors"))
        with pytest.raises(WeightsError):
            archive.append(path, URL, [body], verifier(path))
    assert files_below(tmp_path) == []


def test_a_wrong_file_is_refused_and_may_come_again(tmp_path: Path) -> None:
    body, path = FILES["loras/a.safetensors"], "loras/a.safetensors"
    with ArchiveWriter(tmp_path / "w.tar", LATER) as archive:
        with pytest.raises(WeightsError, match="is cut"):
            archive.append(path, URL, [body[:-1]], verifier(path))
        with pytest.raises(WeightsError, match="after its last tensor"):
            archive.append(path, URL, [body, b"\xff" * 20_000], verifier(path))

        def breaks_off() -> Iterator[bytes]:
            yield b"GGUF" + b"\xff" * 300_000
            raise InterruptedPieceError("cut")

        with pytest.raises(InterruptedPieceError):
            archive.append("vae/a.gguf", URL, breaks_off(), verifier("vae/a.gguf"))
        archive.append(path, URL, [body], verifier(path))
        archive.finish()
    # Nothing of the longer attempts is left behind the end.
    data = (tmp_path / "w.tar").read_bytes()
    assert data.endswith(bytes(1024))
    assert data.count(b"\xff" * 100) == 0


def test_more_files_than_were_planned(tmp_path: Path) -> None:
    body = FILES["loras/a.safetensors"]
    with ArchiveWriter(tmp_path / "w.tar", plan_layout([])) as archive:
        for i in range(9):
            archive.append(f"vae/{i}.safetensors", URL, [body], verifier(f"vae/{i}.safetensors"))
        with pytest.raises(ValueError, match="were reserved"):
            archive.finish()
    assert files_below(tmp_path) == []


def test_not_enough_room_is_said_first(tmp_path: Path) -> None:
    layout = plan_layout([Planned("loras/a.safetensors", URL, 2**60)])
    with (
        pytest.raises(StorageError, match=r"no room.*are needed, \d+ bytes .* are free") as caught,
        ArchiveWriter(tmp_path / "w.tar", layout) as archive,
    ):
        archive.prepare([], 4096)
    assert caught.value.expected == f"{layout.length} bytes free"
    assert files_below(tmp_path) == []


def test_two_writers_of_one_tar(tmp_path: Path) -> None:
    out = tmp_path / "w.tar"
    with ArchiveWriter(out, LATER) as first:
        with (
            pytest.raises(EngineError, match=r"Another bake is writing w\.tar; wait for it"),
            ArchiveWriter(out, LATER),
        ):
            raise AssertionError("two at once")
        first.finish()
    assert files_below(tmp_path) == ["w.tar"]
    with ArchiveWriter(out, LATER) as second:
        second.finish()


def test_one_that_waited_for_the_lock_does_not_write_into_the_finished_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened the temporary file just before the other renamed it: what it holds open is the finished tar."""
    out = tmp_path / "w.tar"
    flock = fcntl.flock
    with ExitStack() as stack:
        first = stack.enter_context(ArchiveWriter(out, LATER))

        def other_ends_first(fd: int, flags: int) -> None:
            monkeypatch.undo()
            first.finish()
            stack.close()
            flock(fd, flags)

        monkeypatch.setattr(fcntl, "flock", other_ends_first)
        with ArchiveWriter(out, LATER) as second:
            finished = out.read_bytes()
            second.target.write(0, memoryview(b"x" * 5000))
            assert out.read_bytes() == finished
    assert files_below(tmp_path) == ["w.tar"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(b"x")

    with pytest.raises(StorageError, match="12 bytes are needed"), disk.room_errors(tmp_path, "vae/a", "12 bytes"):
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
