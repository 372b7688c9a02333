"""What a bake adds to the tar beside the files of its links: a weight of its own, and papers that are none."""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from comfyui.errors import ManifestError, TrainingInputError, WeightsError
from comfyui.local.weights.check import check_tar
from comfyui.settings import Settings
from comfyui.weights.bake.bake import bake
from comfyui.weights.bake.wanted import Found
from comfyui.weights.http.opener import HttpOpener
from comfyui.weights.listener import PlainLines
from comfyui.weights.manifest import Manifest, Weight
from comfyui.weights.restore.restore import read_manifest, restore
from comfyui.weights.sources import NO_TOKENS
from comfyui.weights.tar.archive import ArchiveWriter
from comfyui.weights.tar.layout import plan_layout
from tests.weights.fault_server import FaultServer
from tests.weights.file_server import FileServer
from tests.weights.samples import Report, files_below, safetensors, sha256

BASE, LORA, CURVE = safetensors(1, 300_000), safetensors(2, 5000), b"step,loss\n1,0.5\n"
MEMBERS = {
    "training/loss.csv": CURVE,
    "loras/new.safetensors": LORA,
    "training/empty.txt": b"",
    "training/sample.png": CURVE * 2000,
}


class Made:
    """An addition whose members are given; it notes what it saw."""

    def __init__(self, made: Mapping[str, bytes], refusal: Exception | None = None) -> None:
        self._made = made
        self._refusal = refusal
        self.members: Sequence[str] = list(made)
        self.record = {"path": "loras/new.safetensors", "note": "ü" * 500}
        self.record_bytes = 1200
        self.found: list[str] = []
        self.base = b""

    def check(self, found: Sequence[Found], opener: HttpOpener, stop: threading.Event) -> None:
        self.found = [item.path for item in found]
        if self._refusal:
            raise self._refusal

    def make(self, tar: Path, weights: Sequence[Weight], stop: threading.Event) -> Mapping[str, bytes]:
        (weight,) = weights
        assert weight.offset is not None
        self.base = tar.read_bytes()[weight.offset : weight.offset + weight.size]
        return self._made


def baked(url: str, out: Path, settings: Settings, addition: Made) -> Manifest:
    lists = {"checkpoints": url}
    return bake(lists, out, settings, NO_TOKENS, PlainLines(Report()), addition=addition)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_addition_lies_behind_the_files_it_is_made_from(
    server: FileServer, settings: Settings, tmp_path: Path, chunked: bool
) -> None:
    addition = Made(MEMBERS)
    out = tmp_path / "weights.tar"
    manifest = baked(server.put("/base.safetensors", BASE, chunked=chunked), out, settings, addition)
    assert addition.found == ["checkpoints/base.safetensors"]
    assert addition.base == BASE
    assert [(weight.path, weight.url is None) for weight in manifest.weights] == [
        ("checkpoints/base.safetensors", False),
        ("loras/new.safetensors", True),
    ]
    assert [weight.path for weight in manifest.training] == [
        "training/loss.csv",
        "training/empty.txt",
        "training/sample.png",
    ]
    with tarfile.open(out) as tar:
        inside = {name: tar.extractfile(name) for name in tar.getnames()[1:]}
        data = {name: stream.read() for name, stream in inside.items() if stream is not None}
    assert data == {"checkpoints/base.safetensors": BASE, **MEMBERS}
    for weight in (*manifest.weights, *manifest.training):
        assert weight.offset is not None
        assert out.read_bytes()[weight.offset : weight.offset + weight.size] == data[weight.path]
        assert weight.sha256 == sha256(data[weight.path])
    assert read_manifest(str(out), settings) == manifest


def test_a_member_that_could_not_be_made_is_left_out(server: FileServer, settings: Settings, tmp_path: Path) -> None:
    addition = Made({name: data for name, data in MEMBERS.items() if name != "training/empty.txt"})
    addition.members = list(MEMBERS)
    out = tmp_path / "weights.tar"
    manifest = baked(server.put("/base.safetensors", BASE), out, settings, addition)
    assert [weight.path for weight in manifest.training] == ["training/loss.csv", "training/sample.png"]
    with tarfile.open(out) as tar:
        assert "training/empty.txt" not in tar.getnames()
    assert read_manifest(str(out), settings) == manifest


def test_what_it_refuses_is_not_fetched(server: FileServer, settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out" / "weights.tar"
    with pytest.raises(TrainingInputError, match="no"):
        baked(server.put("/a.safetensors", BASE), out, settings, Made(MEMBERS, TrainingInputError("no")))
    assert all(seen.headers.get("Range") == "bytes=0-0" for seen in server.seen[:1])
    assert len(server.seen) <= 2
    assert files_below(tmp_path / "out") == []


def test_a_weight_that_is_none_ends_the_bake_without_a_tar(
    server: FileServer, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "weights.tar"
    with pytest.raises(WeightsError, match="new"):
        baked(server.put("/a.safetensors", BASE), out, settings, Made({"loras/new.safetensors": LORA[:-1]}))
    assert files_below(out.parent) == []


@pytest.mark.parametrize("path", ["loss.csv", "other/loss.csv", "training/../loss.csv", "training/.hidden", "loras/a"])
def test_papers_lie_in_their_folder_alone(tmp_path: Path, path: str) -> None:
    with ArchiveWriter(tmp_path / "w.tar", plan_layout([], [("training", None)])) as archive:
        with pytest.raises(WeightsError):
            archive.append_training(path, b"x")
        archive.append_training("training/loss.csv", b"x")
        with pytest.raises(WeightsError, match="already"):
            archive.append_training("training/LOSS.csv", b"x")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_restore_passes_over_papers(settings: Settings, tmp_path: Path, ranges: bool) -> None:
    out = tmp_path / "weights.tar"
    with FileServer() as server:
        baked(server.put("/base.safetensors", BASE), out, settings, Made(MEMBERS))
    report = Report()
    with FaultServer() as faulty:
        url = faulty.put("/weights.tar", out.read_bytes(), ranges=ranges)
        restore(url, tmp_path / "models", settings, PlainLines(report))
    weights = ["checkpoints/base.safetensors", "loras/new.safetensors"]
    assert [path for path in files_below(tmp_path / "models") if not path.startswith(".")] == weights
    assert "damaged" not in report.text


def entry(path: str) -> dict[str, object]:
    return {"path": path, "url": None, "size": 1, "sha256": "0" * 64, "offset": 512}


def test_a_manifest_of_weights_alone_has_no_list_of_papers() -> None:
    assert b"training" not in Manifest((Weight("loras/a.safetensors", None, 1, "0" * 64),)).dump()


def test_what_an_addition_was_made_from_is_in_the_manifest(
    server: FileServer, settings: Settings, tmp_path: Path
) -> None:
    addition = Made(MEMBERS)
    manifest = baked(server.put("/base.safetensors", BASE), tmp_path / "weights.tar", settings, addition)
    assert manifest.trained == addition.record
    assert read_manifest(str(tmp_path / "weights.tar"), settings).trained == addition.record


def test_papers_of_a_manifest_are_read_as_strictly_as_weights() -> None:
    good = {"version": 1, "weights": [entry("loras/a.safetensors")], "training": [entry("training/loss.csv")]}
    manifest = Manifest.parse(json.dumps(good))
    assert Manifest.parse(manifest.dump()) == manifest
    for wrong in ("loss.csv", "loras/b.safetensors", "training/../x", "training/"):
        with pytest.raises(ManifestError):
            Manifest.parse(json.dumps({**good, "training": [entry(wrong)]}))
    with pytest.raises(ManifestError, match="no model folder"):
        Manifest.parse(json.dumps({**good, "weights": [entry("training/loss.csv")]}))
    with pytest.raises(ManifestError, match="training must be a list"):
        Manifest.parse(json.dumps({**good, "training": {}}))
    for wrong in ("null", "[]", '"x"'):
        with pytest.raises(ManifestError, match="trained must be a JSON object"):
            Manifest.parse(json.dumps({**good, "trained": json.loads(wrong)}))


def test_verify_proves_the_papers_too(server: FileServer, tmp_path: Path, settings: Settings) -> None:
    out = tmp_path / "weights.tar"
    manifest = baked(server.put("/base.safetensors", BASE), out, settings, Made(MEMBERS))
    paths = {weight.path for weight in (*manifest.weights, *manifest.training)}
    report = check_tar(str(out), settings, PlainLines(print), threading.Event())
    assert (set(report.proven), report.problems) == (paths, ())
    (sample,) = [weight for weight in manifest.training if weight.path == "training/sample.png"]
    with out.open("r+b") as file:
        file.seek((sample.offset or 0) + 5)
        file.write(b"X")
    report = check_tar(str(out), settings, PlainLines(print), threading.Event())
    assert [(problem.path, problem.kind) for problem in report.problems] == [("training/sample.png", "damaged")]
