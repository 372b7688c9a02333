"""Every way a tar can be damaged or hostile: a named error, and nothing under any name."""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from comfyui.errors import ManifestError, SourceError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, Weight
from comfyui.weights.restore import restore
from tests.weights.file_server import FileServer
from tests.weights.samples import Report, files_below, safetensors, sha256, write_tar

FILES = {
    "loras/a.safetensors": safetensors(1, 600),
    "loras/" + "long " * 30 + "b.safetensors": safetensors(2, 900),
    "vae/c.safetensors": safetensors(3, 512),
}
PATHS = list(FILES)

Refused = Callable[[bytes], SourceError]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Manifest]:
    out = tmp_path_factory.mktemp("tar") / "w.tar"
    manifest = write_tar(out, FILES)
    return out.read_bytes(), manifest


@pytest.fixture
def refused(settings: Settings, tmp_path: Path) -> Refused:
    """Restore these bytes; assert that it fails and leaves nothing; return the error."""

    def check(data: bytes) -> WeightsError | ManifestError:
        tar = tmp_path / "w.tar"
        tar.write_bytes(data)
        with pytest.raises(SourceError) as caught:
            restore(str(tar), settings.models_dir, settings, Report())
        assert not settings.models_dir.exists() or files_below(settings.models_dir) == []
        assert isinstance(caught.value, WeightsError | ManifestError)
        return caught.value

    return check


def member(name: str, body: bytes, kind: bytes = tarfile.REGTYPE, tar_format: Literal[1, 2] = 1) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(body), kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = "/etc/passwd"
    return info.tobuf(tar_format) + body + bytes(-len(body) % 512)


def ended(*members: bytes) -> bytes:
    data = b"".join(members) + bytes(1024)
    return data + bytes(-len(data) % 10240)


def tar_of(made: tuple[bytes, Manifest], *members: bytes, **changes: object) -> bytes:
    """A tar with these members behind the manifest, whose one entry gets `changes`."""
    weight = replace(made[1].weights[0], **changes)  # type: ignore[arg-type]
    return ended(member(MANIFEST_NAME, Manifest((weight,)).dump().ljust(1024)), *members)


FIRST_OFFSET = 512 + 1024 + 512


def test_the_tars_of_these_tests_would_be_restored(
    made: tuple[bytes, Manifest], settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "w.tar").write_bytes(tar_of(made, member(PATHS[0], FILES[PATHS[0]]), offset=FIRST_OFFSET))
    restore(str(tmp_path / "w.tar"), settings.models_dir, settings, Report())
    assert files_below(settings.models_dir) == [PATHS[0]]


def test_a_tar_cut_at_any_block(made: tuple[bytes, Manifest], refused: Refused) -> None:
    data, manifest = made
    for cut in range(0, len(data), 512):
        error = refused(data[:cut])
        if cut > (manifest.weights[0].offset or 0):
            assert isinstance(error, WeightsError)
            assert error.path in PATHS
            assert error.expected
            assert error.seen


def test_a_tar_cut_on_its_way(
    made: tuple[bytes, Manifest], server: FileServer, settings: Settings, tmp_path: Path
) -> None:
    # Without a declared length nothing can be known beforehand, and with one the connection may still break.
    data = made[0]
    for cut in range(0, len(data), 512):
        for reply in ({"no_length": True}, {"declared": len(data)}):
            url = server.put("/w.tar", data[:cut], **reply)
            with pytest.raises((WeightsError, ManifestError)):
                restore(url, settings.models_dir, settings, Report())
            assert not settings.models_dir.exists() or files_below(settings.models_dir) == []


def test_any_flipped_byte_in_a_file(made: tuple[bytes, Manifest], refused: Refused) -> None:
    data, manifest = made
    pick = random.Random(5)
    for weight in manifest.weights:
        assert weight.offset is not None
        for _ in range(25):
            at = weight.offset + pick.randrange(weight.size)
            error = refused(data[:at] + bytes([data[at] ^ 1 << pick.randrange(8)]) + data[at + 1 :])
            assert isinstance(error, WeightsError)
            assert error.path == weight.path
            assert "SHA-256" in str(error) or "safetensors" in str(error) or "header" in str(error)


def test_any_flipped_byte_that_matters_in_a_header(made: tuple[bytes, Manifest], refused: Refused) -> None:
    data, manifest = made
    for weight in manifest.weights:
        for back in range(1, 513, 3):
            at = (weight.offset or 0) - back
            error = refused(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
            assert isinstance(error, WeightsError)


def test_bytes_behind_the_end(made: tuple[bytes, Manifest], refused: Refused) -> None:
    for more in (b"x", bytes(512), bytes(10240), member("loras/z.safetensors", b"zz")):
        assert "not as long as its manifest says" in str(refused(made[0] + more))
    data = made[0]
    assert "zeros up to the end" in str(refused(data[:-1] + b"x"))


def test_bytes_behind_the_end_of_a_tar_of_unknown_length(
    made: tuple[bytes, Manifest], server: FileServer, settings: Settings
) -> None:
    url = server.put("/w.tar", made[0] + bytes(512), chunked=True)
    with pytest.raises(WeightsError, match="seen more bytes"):
        restore(url, settings.models_dir, settings, Report())
    assert files_below(settings.models_dir) == []


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
def test_what_is_not_a_plain_file(made: tuple[bytes, Manifest], refused: Refused, kind: bytes, word: str) -> None:
    first = tar_of(made, member(PATHS[0], b"", kind), offset=FIRST_OFFSET, size=0)
    assert word in str(refused(first))
    good = member(PATHS[0], FILES[PATHS[0]])
    behind = tar_of(made, good, member("loras/x", b"", kind), offset=FIRST_OFFSET)
    assert "loras/x" in str(refused(behind))


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/x.safetensors", "loras/z.safetensors", MANIFEST_NAME])
def test_members_that_the_manifest_does_not_have(made: tuple[bytes, Manifest], refused: Refused, name: str) -> None:
    good, bad = member(PATHS[0], FILES[PATHS[0]]), member(name, FILES[PATHS[0]])
    for members in ((bad, good), (bad,), (good, bad)):
        error = refused(tar_of(made, *members, offset=FIRST_OFFSET))
        assert isinstance(error, WeightsError)
        if len(members) == 1:
            assert name in str(error)


def test_a_manifest_with_a_path_that_leads_out(made: tuple[bytes, Manifest], refused: Refused) -> None:
    text = made[1].dump().replace(b"loras/a.safetensors", b"../../a.safetensors").ljust(4096)
    error = refused(ended(member(MANIFEST_NAME, text), member("../../a.safetensors", FILES[PATHS[0]])))
    assert isinstance(error, ManifestError)
    assert error.entry == "../../a.safetensors"


def test_a_file_twice(made: tuple[bytes, Manifest], refused: Refused) -> None:
    good = member(PATHS[0], FILES[PATHS[0]])
    assert PATHS[0] in str(refused(tar_of(made, good, good, offset=FIRST_OFFSET)))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"offset": FIRST_OFFSET + 512}, "long as its manifest|at byte 2560|too short"),
        ({"offset": 0}, "long as its manifest|at byte 0"),
        ({"offset": FIRST_OFFSET, "size": 100}, "expected 100 bytes"),
        ({"offset": FIRST_OFFSET, "size": 10**12}, "too short to hold loras/a.safetensors"),
        ({"offset": FIRST_OFFSET, "sha256": "0" * 64}, "SHA-256"),
        ({"offset": FIRST_OFFSET, "path": "loras/other.safetensors"}, "loras/a.safetensors"),
        ({"offset": FIRST_OFFSET, "path": "loras/a.txt"}, "loras/a"),
        ({"offset": None}, "has no offset"),
    ],
)
def test_a_manifest_that_is_wrong(
    made: tuple[bytes, Manifest], refused: Refused, changes: dict[str, object], word: str
) -> None:
    data = tar_of(made, member(PATHS[0], FILES[PATHS[0]]), **changes)
    error = refused(data)
    assert any(part in str(error) for part in word.split("|")), error


@pytest.mark.parametrize("drop", range(3))
def test_a_file_is_missing(made: tuple[bytes, Manifest], server: FileServer, settings: Settings, drop: int) -> None:
    # Sent without a length, so that only the members can tell.
    data, manifest = made
    first = manifest.weights[0].offset or 0
    members = [member(path, body) for path, body in FILES.items()]
    del members[drop]
    url = server.put("/w.tar", ended(data[: first - 512], *members), chunked=True)
    with pytest.raises(WeightsError) as caught:
        restore(url, settings.models_dir, settings, Report())
    assert caught.value.path == PATHS[drop]
    assert ("is missing" if drop == 2 else "comes too early") in str(caught.value)
    assert files_below(settings.models_dir) == []


def test_files_in_another_order(made: tuple[bytes, Manifest], refused: Refused) -> None:
    data, manifest = made
    first = manifest.weights[0].offset or 0
    members = [member(path, body) for path, body in reversed(FILES.items())]
    assert "not at its place" in str(refused(ended(data[: first - 512], *members)))


def test_a_manifest_in_another_order_is_no_fault(
    made: tuple[bytes, Manifest], settings: Settings, tmp_path: Path
) -> None:
    data, manifest = made
    size = (manifest.weights[0].offset or 0) - 1024
    other = Manifest(tuple(reversed(manifest.weights))).dump().ljust(size)
    (tmp_path / "w.tar").write_bytes(data[:512] + other + data[512 + size :])
    assert restore(str(tmp_path / "w.tar"), settings.models_dir, settings, Report()).weights[-1].path == PATHS[0]
    assert files_below(settings.models_dir) == sorted(PATHS)


def python_tar(names: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "an empty file"),
        (b"short", "no known format"),
        (bytes(10240), "no known format"),
        (gzip.compress(python_tar(["a"])), "compressed with gzip"),
        (b"PK\x03\x04" + bytes(600), "a zip archive"),
        (b"<html>" + b"x" * 600, "a web page"),
        (FILES[PATHS[0]], "a safetensors file"),
        (python_tar(["loras/a.safetensors"]), "was not made by this model's training.*Bake the weights again"),
        (python_tar([MANIFEST_NAME]), "version 1; seen 'int'"),
        (ended(member(MANIFEST_NAME, b"", tarfile.SYMTYPE)), "was not made by this model"),
        (ended(member("./" + MANIFEST_NAME, b"{}")), "was not made by this model"),
        (ended(member("x" * 200, b"{}")), "was not made by this model"),
        (ended(member("x" * 5000, b"{}")), "one of 5001 bytes"),
        (ended(member("é" * 200, b"{}", tar_format=2)), "was not made by this model"),
        (ended(member("x" * 200, b"{}")[:1024], bytes(512)), "the end of the tar"),
    ],
)
def test_what_is_not_a_tar_of_weights(refused: Refused, data: bytes, word: str) -> None:
    assert re.search(word, str(refused(data))), word


def test_a_giant_manifest(refused: Refused) -> None:
    info = tarfile.TarInfo(MANIFEST_NAME)
    info.size = MAX_MANIFEST_BYTES + 1
    assert "is the limit" in str(refused(info.tobuf(tarfile.GNU_FORMAT) + bytes(20480)))


def test_a_web_page_with_a_manifest_entry_is_refused(made: tuple[bytes, Manifest], refused: Refused) -> None:
    # The hash fits and the structure does not: a tar made by hand.
    body = b"<html>" + bytes(100)
    weight = Weight(PATHS[0], None, len(body), sha256(body), FIRST_OFFSET)
    data = ended(member(MANIFEST_NAME, Manifest((weight,)).dump().ljust(1024)), member(PATHS[0], body))
    assert "a web page" in str(refused(data))
