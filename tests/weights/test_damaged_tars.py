"""Every way a tar can be damaged or hostile: the exact bytes or a named error, and nothing wrong under any name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comfyui.errors import ManifestError, SourceError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, Weight
from comfyui.weights.restore.restore import read_manifest, restore
from comfyui.weights.tar.layout import member_header
from tests.weights.samples import safetensors, sha256
from tests.weights.tars import (
    IMPATIENT,
    MANIFEST_ROOM,
    Lines,
    RangeServer,
    baked,
    ended,
    flipped,
    member,
    on_disk,
    with_manifest,
)

FILES = {
    "loras/a.safetensors": safetensors(1, 600),
    "loras/" + "long " * 30 + "b.safetensors": safetensors(2, 900),
    "vae/c.safetensors": safetensors(3, 512),
}
PATHS = list(FILES)
TAR, MANIFEST = baked(FILES)
HEAD = 512 + MANIFEST_ROOM
FIRST_OFFSET = HEAD + 512

Try = Callable[..., tuple[SourceError | None, str]]


@pytest.fixture
def storage() -> Iterator[RangeServer]:
    with RangeServer() as running:
        yield running


@pytest.fixture
def attempt(settings: Settings, storage: RangeServer, tmp_path: Path) -> Try:
    """Restore these bytes by one way; assert that all files are right or none is there; the error and what was said."""

    def attempt(
        data: bytes, way: str = "path", files: dict[str, bytes] = FILES, **served: object
    ) -> tuple[SourceError | None, str]:
        location = str(tmp_path / "w.tar")
        if way == "path":
            Path(location).write_bytes(data)
        else:
            location = storage.put("/w.tar", data, ranges=way == "ranges", **served)
        lines, error = Lines(), None
        shutil.rmtree(settings.models_dir, ignore_errors=True)
        try:
            restore(location, settings.models_dir, settings, lines, options=IMPATIENT)
        except SourceError as caught:
            error = caught
            assert isinstance(error, WeightsError | ManifestError), repr(error)
        there = on_disk(settings.models_dir)
        assert there == ({} if error else files), error
        return error, lines.text

    return attempt


def refused(result: tuple[SourceError | None, str]) -> SourceError:
    """The error of an attempt that must have one."""
    assert result[0] is not None, "it was not refused"
    return result[0]


WAYS = ["path", "ranges", "stream"]


@pytest.mark.parametrize("way", WAYS)
def test_a_good_one(attempt: Try, way: str) -> None:
    assert attempt(TAR, way)[0] is None
    assert attempt(tar_of(member(PATHS[0], FILES[PATHS[0]])), way, {PATHS[0]: FILES[PATHS[0]]})[0] is None


@pytest.mark.parametrize("way", WAYS)
def test_cut_at_any_block(attempt: Try, way: str) -> None:
    last = MANIFEST.weights[-1]
    end = (last.offset or 0) + last.size
    for cut in range(0, len(TAR), 512):
        error, said = attempt(TAR[:cut], way)
        assert (error is None) is (cut >= end), cut
        if error is None:
            assert f"it is {cut} bytes long, and its manifest says {len(TAR)}" in said
        elif cut > FIRST_OFFSET:
            assert isinstance(error, WeightsError)
            assert error.path in PATHS
            assert error.expected
            assert error.seen


def test_cut_on_its_way(attempt: Try) -> None:
    # The length is that of the whole, and the connection breaks each time.
    for cut in range(0, (MANIFEST.weights[-1].offset or 0) + 512, 1024):
        if cut < HEAD:
            # Before anything is known of the files it is the link's fault.
            with pytest.raises(AssertionError, match=r"_GivenUpError\(.*could not be read"):
                attempt(TAR, "stream", cut=lambda _asked, cut=cut: cut)
        else:
            refused(attempt(TAR, "stream", cut=lambda _asked, cut=cut: cut))


@pytest.mark.parametrize("way", WAYS)
def test_any_flipped_byte_in_a_file(attempt: Try, way: str) -> None:
    pick = random.Random(way)
    for weight in MANIFEST.weights:
        for _ in range(25 if way == "path" else 6):
            at = (weight.offset or 0) + pick.randrange(weight.size)
            error = refused(attempt(flipped(TAR, at, 1 << pick.randrange(8)), way))
            assert isinstance(error, WeightsError)
            assert error.path == weight.path
            assert "the tar (" in str(error)


@pytest.mark.parametrize("way", ["path", "stream"])
def test_any_flipped_byte_outside_of_the_files(attempt: Try, way: str) -> None:
    # In a header it is noticed and does no harm, or it makes the name doubtful; in padding nobody cares.
    outcomes = {"silent": 0, "said": 0, "refused": 0}
    inside = [range(weight.offset or 0, (weight.offset or 0) + weight.size) for weight in MANIFEST.weights]
    for at in range(HEAD, len(TAR), 11 if way == "path" else 23):
        if at > FIRST_OFFSET + 6000 and at % 61:
            continue
        if not any(at in span for span in inside):
            error, said = attempt(flipped(TAR, at, 64), way)
            outcomes["refused" if error else "said" if "damaged outside" in said else "silent"] += 1
            # The first 136 bytes of a header are its name, mode, owner and size (POSIX, ustar).
            in_header = any(0 <= at - ((weight.offset or 0) - 512) < 136 for weight in MANIFEST.weights)
            assert not in_header or error or "a damaged header" in said
    assert outcomes["said"] > (80 if way == "path" else 40)
    assert outcomes["refused"] > (5 if way == "path" else 2), "a name that was changed in its record"


def test_any_flipped_byte_in_the_manifest(attempt: Try) -> None:
    """Its spaces may change; a path may not, though nothing but the tar's own header proves it."""
    text_end = 512 + len(MANIFEST.dump())
    right = 0
    for at in range(512, text_end):
        error, _ = attempt(flipped(TAR, at, 1 if at % 2 else 32))
        right += error is None
    assert right < (text_end - 512) // 3


@pytest.mark.parametrize("way", WAYS)
def test_bytes_behind_the_end(attempt: Try, way: str) -> None:
    for more in (b"x", bytes(512), bytes(10240), member("loras/z.safetensors", b"zz")):
        error, said = attempt(TAR + more, way)
        assert error is None
        assert "damaged outside of its files: it is" in said
    error, said = attempt(TAR[:-1] + b"x", way)
    assert error is None


# Members that are not what the manifest says


def tar_of(*members: bytes, **changes: object) -> bytes:
    """A tar with these members behind a manifest of one file, whose entry gets `changes`."""
    weight = replace(MANIFEST.weights[0], offset=FIRST_OFFSET)
    return with_manifest(Manifest((replace(weight, **changes),)), b"".join(members))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("drop", range(3))
def test_a_member_is_missing(attempt: Try, drop: int, way: str) -> None:
    members = [member(path, body) for path, body in FILES.items()]
    del members[drop]
    error = refused(attempt(ended(TAR[:HEAD], *members), way))
    assert isinstance(error, WeightsError)
    assert error.path == PATHS[drop]


@pytest.mark.parametrize("way", WAYS)
def test_members_in_another_order(attempt: Try, way: str) -> None:
    members = [member(path, body) for path, body in reversed(FILES.items())]
    error, said = attempt(ended(TAR[:HEAD], *members), way)
    assert "damaged outside of its files" in said
    assert f"the header of {PATHS[2]!r}" in str(refused((error, said)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["loras/z.safetensors", "vae/a.safetensors", "loras/A.safetensors", "../../a", "/a"])
def test_a_member_with_another_name(attempt: Try, name: str, way: str) -> None:
    error = refused(attempt(TAR[:HEAD] + member_header(name, len(FILES[PATHS[0]])) + TAR[FIRST_OFFSET:], way))
    assert isinstance(error, WeightsError)
    assert error.path == PATHS[0]
    assert error.expected == f"{PATHS[0]}, {len(FILES[PATHS[0]])} bytes"
    assert name in (error.seen or "")
    assert "nobody knows which is right" in str(error)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.DIRTYPE, "a folder"),
        (b"Z", "type b'Z'"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_member_that_is_no_plain_file(attempt: Try, kind: bytes, word: str, way: str) -> None:
    link = member(PATHS[0], b"", kind)
    assert word in str(refused(attempt(tar_of(link, FILES[PATHS[0]] + bytes(2048)), way)))
    error, _ = attempt(tar_of(member(PATHS[0], FILES[PATHS[0]]), member("loras/x", b"", kind)), way, first_file())
    assert error is None, "the manifest does not have it, so it is nothing"


def first_file() -> dict[str, bytes]:
    return {PATHS[0]: FILES[PATHS[0]]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/x.safetensors", "loras/z.safetensors", MANIFEST_NAME])
def test_members_that_the_manifest_does_not_have(attempt: Try, name: str, way: str) -> None:
    good, bad = member(PATHS[0], FILES[PATHS[0]]), member(name, FILES[PATHS[0]])
    assert attempt(tar_of(good, bad), way, first_file())[0] is None
    assert "the header of" in str(refused(attempt(tar_of(bad, good), way)))
    assert attempt(tar_of(bad, good, offset=FIRST_OFFSET + len(bad)), way, first_file())[0] is None


def test_a_manifest_with_a_path_that_leads_out(attempt: Try) -> None:
    text = MANIFEST.dump().replace(b"loras/a.safetensors", b"../../a.safetensors").ljust(MANIFEST_ROOM)
    error = refused(attempt(TAR[:512] + text + TAR[HEAD:]))
    assert isinstance(error, ManifestError)
    assert error.entry == "../../a.safetensors"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"offset": FIRST_OFFSET + 512}, "expected "),
        ({"offset": FIRST_OFFSET - 512}, "expected "),
        ({"offset": 0}, "expected "),
        ({"size": 100}, "expected "),
        ({"size": 10**9}, "expected "),
        ({"offset": 10**15}, "expected "),
        ({"sha256": "0" * 64}, f"expected {'0' * 64}, seen {MANIFEST.weights[0].sha256}"),
        ({"path": "loras/other.safetensors"}, "loras/a.safetensors"),
        ({"path": "loras/a.txt"}, "does not have the name of a weight file"),
        ({"offset": None}, "has no offset"),
    ],
)
def test_a_manifest_that_is_wrong(attempt: Try, changes: dict[str, object], word: str, way: str) -> None:
    assert word in str(refused(attempt(tar_of(member(PATHS[0], FILES[PATHS[0]]), **changes), way)))


@pytest.mark.parametrize("way", WAYS)
def test_two_files_at_one_place(attempt: Try, way: str) -> None:
    first = MANIFEST.weights[0]
    both = Manifest((first, replace(first, path="loras/z.safetensors")))
    error = refused(attempt(with_manifest(both, TAR[HEAD : FIRST_OFFSET + 4096]), way))
    assert "loras/z.safetensors" in str(error)


@pytest.mark.parametrize("way", WAYS)
def test_a_manifest_in_another_order_is_no_fault(attempt: Try, way: str) -> None:
    other = Manifest(tuple(reversed(MANIFEST.weights)))
    error, said = attempt(TAR[:512] + other.dump().ljust(MANIFEST_ROOM) + TAR[HEAD:], way)
    assert error is None
    assert "damaged" not in said


# What is no tar of weights at all


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "an empty file"),
        (b"short", "no known format"),
        (bytes(10240), "no known format"),
        (gzip.compress(TAR), "compressed with gzip; unpack it with gzip first"),
        (lzma.compress(TAR), "compressed with xz"),
        (bz2.compress(TAR), "compressed with bzip2"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
        (b"PK\x03\x04" + bytes(600), "a zip archive"),
        (b"<html>" + b"x" * 600, "a web page"),
        (FILES[PATHS[0]], "a safetensors file"),
        (ended(member(MANIFEST_NAME, b"12345")), "version 1; seen 'int'"),
        (ended(member(MANIFEST_NAME, b"", tarfile.SYMTYPE)), "that is a symbolic link"),
        (ended(member("x" * 5000, b"{}")), "one of 5001 bytes"),
        (ended(member("x" * 200, b"{}")[:1024], bytes(512)), "the end of the tar"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_a_tar_of_weights(attempt: Try, data: bytes, word: str, way: str) -> None:
    assert re.search(word, str(refused(attempt(data, way)))), word


def test_the_manifest_of_a_tar_without_one(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "w.tar").write_bytes(ended(member("loras/a.safetensors", FILES[PATHS[0]])))
    with pytest.raises(WeightsError, match=r"was not made by this model's training.*Bake the weights again"):
        read_manifest(str(tmp_path / "w.tar"), settings)


def test_a_giant_manifest(attempt: Try) -> None:
    info = tarfile.TarInfo(MANIFEST_NAME)
    info.size = MAX_MANIFEST_BYTES + 1
    assert "is the limit" in str(refused(attempt(info.tobuf(tarfile.GNU_FORMAT) + bytes(20480))))


def test_a_manifest_longer_than_the_head(attempt: Try) -> None:
    body = FILES[PATHS[0]]
    room = 3 * 2**20
    weight = Weight(PATHS[0], None, len(body), sha256(body), 512 + room + 512)
    text = Manifest((weight,)).dump().ljust(room)
    data = ended(member_header(MANIFEST_NAME, room), text, member(PATHS[0], body))
    for way in WAYS:
        assert attempt(data, way, first_file())[0] is None


def test_a_web_page_with_a_manifest_entry_is_refused(attempt: Try) -> None:
    # The hash fits and the structure does not: a tar made by hand.
    body = b"<html>" + bytes(100)
    weight = Weight(PATHS[0], None, len(body), sha256(body), FIRST_OFFSET)
    error = refused(attempt(with_manifest(Manifest((weight,)), member(PATHS[0], body))))
    assert "a web page" in str(error)
