"""Tars that bake did not make: cog-comfyui's, anybody's, and hostile ones."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from comfyui.errors import DownloadError, SourceError, StorageError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, Weight
from comfyui.weights.restore.restore import restore
from comfyui.weights.tar import foreign as foreign_tar
from tests.weights.samples import safetensors, sha256
from tests.weights.tars import IMPATIENT, Asked, Lines, RangeServer, ended, flipped, member, on_disk

A, B, C = "loras/a.safetensors", "checkpoints/" + "long " * 30 + "b.safetensors", "animatediff_motion_lora/c.ckpt"
PICKLE = b"PK\x03\x04" + bytes(700)
FILES = {A: safetensors(1, 600), B: safetensors(2, 90_000), C: PICKLE}
WAYS = ["path", "ranges", "stream"]

Try = Callable[..., tuple[Manifest | None, SourceError | StorageError | None, str]]


@pytest.fixture
def storage() -> Iterator[RangeServer]:
    with RangeServer() as running:
        yield running


@pytest.fixture
def attempt(settings: Settings, storage: RangeServer, tmp_path: Path) -> Try:
    """Restore these bytes by one way; assert that there are `files` or nothing; the manifest or error, and the log."""

    def attempt(
        data: bytes, way: str = "path", files: Mapping[str, bytes] = FILES, **served: object
    ) -> tuple[Manifest | None, SourceError | StorageError | None, str]:
        location = str(tmp_path / "w.tar")
        if way == "path":
            Path(location).write_bytes(data)
        else:
            location = storage.put("/w.tar", data, ranges=way == "ranges", **served)
        shutil.rmtree(settings.models_dir, ignore_errors=True)
        lines, manifest, error = Lines(), None, None
        try:
            manifest = restore(location, settings.models_dir, settings, lines, options=IMPATIENT)
        except (SourceError, StorageError) as caught:
            error = caught
        assert on_disk(settings.models_dir) == ({} if error else files), error
        return manifest, error, lines.text

    return attempt


def by_python(folder: Path, arcname: Callable[[str], str] = str, **how: object) -> bytes:
    """A tar made from files on disk with Python's tarfile, as cog-comfyui's train.py makes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **how) as tar:  # type: ignore[call-overload]
        for root, _, files in os.walk(folder):
            for name in sorted(files):
                tar.add(Path(root) / name, arcname=arcname(os.path.relpath(Path(root) / name, folder)))
    return out.getvalue()


@pytest.fixture
def user_models(tmp_path: Path) -> Path:
    folder = tmp_path / "user_models"
    listed = {"LORAS": ["a.safetensors"], "CHECKPOINTS": ["b"], "ANIMATEDIFF_MOTION_LORA": ["c.ckpt"]}
    for path, body in {**FILES, "weights.json": json.dumps(listed).encode()}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_of_cog_comfyuis_training(attempt: Try, user_models: Path, way: str, tar_format: int) -> None:
    data = by_python(user_models, format=tar_format)
    manifest, error, said = attempt(data, way)
    assert error is None
    assert manifest is not None
    assert {weight.path: (weight.size, weight.sha256, weight.url) for weight in manifest.weights} == {
        path: (len(body), sha256(body), None) for path, body in FILES.items()
    }
    for weight in manifest.weights:
        assert data[weight.offset or 0 :][: weight.size] == FILES[weight.path]
    assert "nothing proves its bytes but their structure" in said
    assert "Weights baked by this model's training are proven" in said
    assert "passed over, being no weights: 'weights.json'" in said
    assert "3 weight files in place" in said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("top", ["./", "models/", "ComfyUI/models/", "./models/"])
def test_folders_above_the_model_folders(attempt: Try, user_models: Path, way: str, top: str) -> None:
    (user_models / "weights.json").unlink()
    (user_models / "loras" / ".DS_Store").write_bytes(b"x")
    (user_models / "loras" / "._a.safetensors").write_bytes(b"x")
    (user_models / "loras" / "preview.png").write_bytes(b"x")
    (user_models / "README.md").write_bytes(b"x")
    data = by_python(user_models, lambda name: top + name)
    folders = b"".join(member(f"{top}{name}", b"", tarfile.DIRTYPE) for name in ("", "loras/", "checkpoints"))
    _, error, said = attempt(folders + data, way)
    assert error is None
    assert all(name in said for name in (".DS_Store", "._a.safetensors", "preview.png", "README.md"))


@pytest.mark.parametrize("way", WAYS)
def test_the_usual_ends_of_a_tar(attempt: Try, way: str) -> None:
    members = b"".join(member(path, body) for path, body in FILES.items())
    for zeros in (512, 1024, 10240, 100 * 512):
        assert attempt(members + bytes(zeros), way)[1] is None
    for end in (b"", bytes(1024) + b"x", bytes(1024) + member("vae/z.safetensors", FILES[A]), bytes(2_000_000)):
        error = attempt(members + end, way)[1]
        assert isinstance(error, WeightsError), end[-9:]


HOSTILE = [
    (member("loras/x.safetensors", b"", tarfile.SYMTYPE), "a symbolic link"),
    (member("loras/x.safetensors", b"", tarfile.LNKTYPE), "a hard link"),
    (member("loras/x.safetensors", b"", tarfile.CHRTYPE), "a character device"),
    (member("loras/x.safetensors", b"", tarfile.BLKTYPE), "a block device"),
    (member("loras/x.safetensors", b"", tarfile.FIFOTYPE), "a named pipe"),
    (member("loras/x.safetensors", b"", tarfile.CONTTYPE), "a contiguous file"),
    (member("loras/x.safetensors", b"", b"Z"), "a member of type"),
    (member("loras", b"data", tarfile.DIRTYPE), "a folder"),
    (member("loras/x.safetensors", b"", tarfile.GNUTYPE_SPARSE), "a sparse file"),
    (member("loras/x.safetensors", FILES[A], tar_format=2, pax={"GNU.sparse.major": "1"}), "a sparse file"),
    (member("/loras/x.safetensors", FILES[A]), "leads out"),
    (member("../loras/x.safetensors", FILES[A]), "leads out"),
    (member("loras/../../x.safetensors", FILES[A]), "leads out"),
    (member("loras\\x.safetensors", FILES[A]), "leads out"),
    (member("..", b"", tarfile.DIRTYPE), "leads out"),
    (member("x.safetensors", FILES[A], tar_format=2, pax={"path": "../evil.safetensors"}), "leads out"),
    (member("loras/A.safetensors", FILES[A]), "would be one file"),
    (member(A, FILES[A]), "would be one file"),
    (member(A + "/x.safetensors", FILES[A]), "one in the other"),
    (member("vae/x.pt/y.pt", PICKLE) + member("vae/x.pt", PICKLE), "one in the other"),
    (member("checkpoints", PICKLE), "no model folder|a model folder and a file name"),
    (member("custom_nodes/evil.py", b"import os"), "no model folder"),
    (member("custom_nodes/a.safetensors", FILES[A]), "no model folder"),
    (member("other/loras/x.safetensors", FILES[A]), "no model folder"),
    (member("loras/x.exe", b"MZ"), "does not have the name of a weight file"),
    (member("loras/HTTPSConnectionPool(host='x', port=443): Max retries", b"<html>"), "cannot be used for weights"),
    (member("loras/x\n.safetensors", FILES[A]), "cannot be used for weights"),
    (member("loras/x.safetensors", FILES[A][:-1]), "is cut|expected 773 bytes|expected"),
    (member("loras/x.safetensors", b"<html>" + bytes(200)), "a web page"),
    (member("loras/x.ckpt", b"<html>" + bytes(200)), "a web page"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("bad", "word"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_members_are_refused_by_name(attempt: Try, bad: bytes, word: str, way: str) -> None:
    good = [member(path, body) for path, body in FILES.items()]
    for members in ([*good, bad], [good[0], bad, good[1]], [good[0], good[2], bad]):
        error = attempt(ended(*members), way)[1]
        assert isinstance(error, WeightsError), (members, error)
        assert any(part in str(error) for part in word.split("|")), error
        assert error.path
        assert error.seen


@pytest.mark.parametrize("way", WAYS)
def test_bombs(attempt: Try, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("loras/x.safetensors")
    info.size = 10**14
    error = attempt(info.tobuf(tarfile.GNU_FORMAT) + FILES[A], way)[1]
    assert isinstance(error, WeightsError | StorageError)
    monkeypatch.setattr(foreign_tar, "MAX_MEMBERS", 5)
    many = [member(f"loras/{number}.safetensors", FILES[A]) for number in range(6)]
    assert "more than 5 members" in str(attempt(ended(*many), way)[1])
    assert "headers without one" in str(attempt(member("x", b"", tarfile.XHDTYPE) * 20, way)[1])
    giant = tarfile.TarInfo("x")
    giant.type, giant.size = tarfile.XHDTYPE, 10**9
    assert "a pax header of usual length" in str(attempt(giant.tobuf() + bytes(9999), way)[1])


def test_more_than_the_disk_holds(
    attempt: Try, storage: RangeServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ended(*[member(path, body) for path, body in FILES.items()])
    usage = shutil.disk_usage(settings.models_dir.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=50_000))
    for way in WAYS:
        error = attempt(data, way)[1]
        assert isinstance(error, StorageError)
        assert error.seen == "50000 bytes free"
    # Refused before a byte of a file is fetched, where the headers can be read alone.
    assert not [span for span in storage.bytes_asked("/w.tar") if 0 < span[1] - span[0] < 2**14 - 1]


def test_broken_pax_headers(attempt: Try) -> None:
    for record in (b"9 a=b", b"x", b"99999 a=b\n", b"6 ab\n\n", b"-1 a=b\n", b"12 size=-5\n\n", b"11 size=abc"):
        bad = member("x", record, tarfile.XHDTYPE) + member("loras/x.safetensors", FILES[A])
        assert isinstance(attempt(ended(bad))[1], WeightsError), record


@pytest.mark.parametrize("way", WAYS)
def test_cut_at_any_block(attempt: Try, way: str) -> None:
    data = ended(*[member(path, body) for path, body in ((A, FILES[A]), (C, PICKLE))])
    for cut in range(0, len(data), 512):
        files = {A: FILES[A], C: PICKLE}
        _, error, _ = attempt(data[:cut], way, files)
        # Whether the last file is whole shows in the zeros behind it.
        assert (error is None) is (cut >= 7 * 512), cut
        assert error is None or isinstance(error, WeightsError)


@pytest.mark.parametrize("way", WAYS)
def test_any_flipped_byte_gives_the_same_or_a_named_error_where_structure_can_tell(attempt: Try, way: str) -> None:
    data = ended(member(A, FILES[A]), member("vae/c.safetensors", safetensors(4, 512)))
    pick = random.Random(way)
    refused = 0
    for _ in range(60):
        at = pick.choice((pick.randrange(0, 148), pick.randrange(512, 512 + 100), pick.randrange(1536, 1536 + 148)))
        damaged = flipped(data, at, 1 << pick.randrange(8))
        try:
            attempt(damaged, way, {A: damaged[512 : 512 + len(FILES[A])], "vae/c.safetensors": safetensors(4, 512)})
        except AssertionError as error:
            raise AssertionError(f"byte {at}") from error
        refused += 1
    assert refused == 60


@pytest.mark.parametrize(("ranges", "trouble"), [(True, "the connection ended early"), (False, "the connection broke")])
def test_connections_that_break(attempt: Try, ranges: bool, trouble: str) -> None:
    data = ended(*[member(path, body) for path, body in FILES.items()])
    broken = iter([None, *[30_000] * (2 if not ranges else 4)])
    _, error, said = attempt(data, "ranges" if ranges else "stream", cut=lambda _asked: next(broken, None))
    assert error is None
    assert trouble in said


def test_a_stream_that_always_breaks(attempt: Try) -> None:
    data = ended(*[member(path, body) for path, body in FILES.items()])
    error = attempt(data, "stream", cut=lambda _asked: 30_000)[1]
    assert isinstance(error, DownloadError)
    assert "broke off 3 times" in str(error)


def test_a_file_damaged_on_the_way_is_fetched_again(attempt: Try) -> None:
    # Only its structure can tell.
    data = ended(*[member(path, body) for path, body in FILES.items()])
    at, left = 512, [1]

    def spoil(asked: Asked, body: bytes) -> bytes:
        first, last = asked.span or (0, 0)
        if first <= at + 9 <= last <= first + 2**14 and last > first and left:
            left.clear()
            return flipped(body, at + 9 - first, 0x80)
        return body

    _, error, said = attempt(data, "ranges", spoil=spoil)
    assert error is None
    assert not left
    assert f"{A} came wrong" in said


def test_what_was_there_is_replaced(attempt: Try, settings: Settings, tmp_path: Path) -> None:
    data = ended(*[member(path, body) for path, body in FILES.items()])
    attempt(data)
    (settings.models_dir / A).write_bytes(b"old")
    lines = Lines()
    restore(str(tmp_path / "w.tar"), settings.models_dir, settings, lines, options=IMPATIENT)
    assert on_disk(settings.models_dir) == FILES
    assert f"replacing {A}: 3 bytes before, {len(FILES[A])} now" in lines.lines


@pytest.mark.parametrize("way", WAYS)
def test_nothing_to_restore(attempt: Try, way: str) -> None:
    error = attempt(ended(member("README.md", b"x"), member("loras", b"", tarfile.DIRTYPE)), way)[1]
    assert isinstance(error, WeightsError)
    assert "no weight files in it" in str(error)


def test_a_manifest_that_is_not_first_is_no_manifest(attempt: Try) -> None:
    # Its offsets belong to another tar.
    text = Manifest((Weight(A, None, 5, "0" * 64, 0),)).dump()
    _, error, said = attempt(ended(member(A, FILES[A]), member(MANIFEST_NAME, text)), files={A: FILES[A]})
    assert error is None
    assert f"passed over, being no weights: {MANIFEST_NAME!r}" in said


def test_many_extras_are_counted(attempt: Try) -> None:
    extras = [member(f"loras/{number}.txt", b"x") for number in range(25)]
    _, error, said = attempt(ended(member(A, FILES[A]), *extras), files={A: FILES[A]})
    assert error is None
    assert "'loras/9.txt' and 15 more" in said
