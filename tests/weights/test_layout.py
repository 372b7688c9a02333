"""Where everything lies in a tar: by properties, and by what real tars say of it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import WeightsError
from comfyui.weights.folders import MODEL_FOLDERS, check_member_path, path_key
from comfyui.weights.judge.verify import Digest
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, Weight
from comfyui.weights.tar.archive import ArchiveWriter
from comfyui.weights.tar.layout import BLOCK, RECORD, Planned, member_header, padded, plan_layout, tar_length

GIB = 1024**3
URL = "https://example.com/" + "long/" * 9


def is_path(path: str) -> bool:
    try:
        check_member_path(path)
    except WeightsError:
        return False
    return True


names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=120)
paths = st.builds("{}/{}.safetensors".format, st.sampled_from(sorted(MODEL_FOLDERS)), names).filter(is_path)
files = st.lists(
    st.builds(Planned, paths, st.just(URL), st.integers(0, 2**50)),
    max_size=30,
    unique_by=lambda file: path_key(file.path),
)


@given(files)
def test_places(planned: list[Planned]) -> None:
    layout = plan_layout(planned)
    manifest = Manifest(
        tuple(Weight(place.planned.path, URL, place.planned.size, "f" * 64, place.offset) for place in layout.places)
    )
    blocks = layout.manifest_blocks(manifest)
    assert Manifest.parse(blocks[BLOCK:]) == manifest
    end = len(blocks)
    for place, file in zip(layout.places, planned, strict=True):
        assert place.planned is file
        assert place.header_at == end
        assert place.offset == place.header_at + len(member_header(file.path, file.size))
        assert place.end == padded(place.offset + file.size)
        assert {place.header_at % BLOCK, place.offset % BLOCK, place.end % BLOCK} == {0}
        end = place.end
    assert layout.end == end
    assert layout.length % RECORD == 0
    assert layout.end + 2 * BLOCK <= layout.length < layout.end + 2 * BLOCK + RECORD


@given(paths, st.integers(0, 2**62))
def test_headers_say_what_they_were_given(path: str, size: int) -> None:
    header = member_header(path, size)
    assert len(header) % BLOCK == 0
    assert len(header) == len(member_header(path, 0))
    # Before a long name, the header's own name is cut at 100 bytes, be it inside a letter.
    info = tarfile.TarInfo.frombuf(header[-BLOCK:], "utf-8", "replace")
    assert (info.size, info.mode, info.mtime, info.uid, info.gid, info.uname, info.isreg()) == (
        size, 0o644, 0, 0, 0, "", True
    )  # fmt: skip
    if len(header) == BLOCK:
        assert info.name == path
    else:
        long = tarfile.TarInfo.frombuf(header[:BLOCK], "utf-8", "strict")
        assert long.type == tarfile.GNUTYPE_LONGNAME
        assert header[BLOCK : BLOCK + long.size].rstrip(b"\0").decode() == path


@given(st.integers(0, 2**60))
def test_padding(size: int) -> None:
    assert padded(size) % BLOCK == 0
    assert 0 <= padded(size) - size < BLOCK
    assert tar_length(padded(size)) % RECORD == 0


def test_the_room_for_the_manifest_depends_on_the_request_alone() -> None:
    short = plan_layout([Planned("loras/a.safetensors", URL, 1)], [("vae", URL)])
    long = plan_layout([Planned(f"loras/{'a' * 243}.safetensors", URL, 2**50)], [("vae", URL)])
    assert short.manifest_room == long.manifest_room
    assert short.manifest_room > plan_layout([Planned("loras/a.safetensors", URL, 1)]).manifest_room


def test_a_path_twice_is_refused() -> None:
    for other in ("loras/a.safetensors", "loras/A.SAFETENSORS"):
        with pytest.raises(WeightsError, match=r"is in the tar already"):
            plan_layout([Planned("loras/a.safetensors", URL, 1), Planned(other, URL, 2)])
    with pytest.raises(WeightsError, match="cannot be used for weights"):
        plan_layout([Planned("../a.safetensors", URL, 1)])


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A tar with a member over 8 GiB, long names and more than 100 members; all of it a hole on the disk."""
    sizes = {"checkpoints/huge.safetensors": 9 * GIB + 1}
    sizes |= {f"vae/{'long ' * 40}.gguf": 3, f"vae/0{'𐀀' * 30}.gguf": 4, "unet/日本.gguf": 8 * GIB - 1}
    sizes |= {f"loras/{number}.safetensors": number * 7 for number in range(120)}
    planned = [Planned(path, URL, size) for path, size in sizes.items()]
    out = tmp_path_factory.mktemp("huge") / "w.tar"
    layout = plan_layout(planned)
    with ArchiveWriter(out, layout) as archive:
        archive.target.truncate(layout.length)
        for place in layout.places:
            header = member_header(place.planned.path, place.planned.size)
            archive.target.write(place.header_at, memoryview(header))
        manifest = archive.finish([Digest(file.size, "0" * 64) for file in planned])
    return out, manifest


def test_python_lists_a_huge_tar(huge: tuple[Path, Manifest]) -> None:
    out, manifest = huge
    with tarfile.open(out) as tar:
        first, *members = tar.getmembers()
        assert first.name == MANIFEST_NAME
        assert [(member.name, member.size, member.offset_data) for member in members] == [
            (weight.path, weight.size, weight.offset) for weight in manifest.weights
        ]
        inside = tar.extractfile(first)
        assert inside is not None
        assert Manifest.parse(inside.read()) == manifest
    assert out.stat().st_size % RECORD == 0


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_a_tar_program_lists_a_huge_tar(huge: tuple[Path, Manifest], program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    out, manifest = huge
    done = subprocess.run(
        [program, "-tvf", out],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == len(manifest.weights) > 100
    for line, weight in zip(lines, manifest.weights, strict=True):
        assert str(weight.size) in line.split()
        assert line.endswith(weight.path) or not weight.path.isascii()
    one = subprocess.run([program, "-xOf", out, "loras/3.safetensors"], capture_output=True, check=True)
    assert one.stdout == bytes(21)
