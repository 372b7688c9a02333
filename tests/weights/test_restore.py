"""From a good tar into a models folder."""

from __future__ import annotations

import contextlib
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui.errors import DownloadError, RequestError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.bake import bake
from comfyui.weights.restore import RestoreStoppedError, restore
from comfyui.weights.sources import NO_TOKENS
from tests.weights.file_server import FileServer
from tests.weights.samples import Report, files_below, safetensors, write_tar

FILES = {
    "checkpoints/m.safetensors": safetensors(1, 2_500_000),
    "loras/" + "long " * 40 + "a.safetensors": safetensors(2, 102400),
    "loras/sub/b.safetensors": safetensors(3, 512),
}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    write_tar(tmp_path / "weights.tar", FILES)
    return tmp_path / "weights.tar"


def assert_restored(models: Path, files: dict[str, bytes] = FILES) -> None:
    assert files_below(models) == sorted(files)
    assert all((models / path).read_bytes() == body for path, body in files.items())


@pytest.mark.parametrize("form", ["path", "file", "http", "chunked"])
def test_a_tar_is_restored(server: FileServer, settings: Settings, tar: Path, form: str) -> None:
    location = {
        "path": str(tar),
        "file": tar.as_uri(),
        "http": server.put("/weights.tar", tar.read_bytes()) + "?sig=SECRET",
        "chunked": server.put("/chunked.tar", tar.read_bytes(), chunked=True),
    }[form]
    report = Report()
    manifest = restore(location, settings.models_dir, settings, report)
    assert [weight.path for weight in manifest.weights] == list(FILES)
    assert_restored(settings.models_dir)
    assert report[0].startswith("restoring weights from ")
    assert any(line.startswith("verified loras/sub/b.safetensors: 6") for line in report)
    assert report[-1].startswith("3 weight files in place, 2.6 MB in ")
    assert "SECRET" not in report.text


def test_bake_then_restore(server: FileServer, settings: Settings, tmp_path: Path) -> None:
    pickle = b"PK\x03\x04" + bytes(500)
    request: dict[str, str | None] = {
        "loras": server.put("/b.safetensors", FILES["loras/sub/b.safetensors"]),
        "vaes": server.put("/v.pt", pickle),
    }
    baked = bake(request, tmp_path / "w.tar", settings, NO_TOKENS, Report(), allow_pickle=True)
    assert restore(str(tmp_path / "w.tar"), settings.models_dir, settings, Report()) == baked
    assert_restored(settings.models_dir, {"loras/b.safetensors": FILES["loras/sub/b.safetensors"], "vae/v.pt": pickle})
    with pytest.raises(WeightsError, match="can run any code"):
        restore(str(tmp_path / "w.tar"), tmp_path / "other", settings, Report(), allow_pickle=False)
    assert files_below(tmp_path / "other") == []


def test_an_empty_tar_of_weights(settings: Settings, tmp_path: Path) -> None:
    write_tar(tmp_path / "w.tar", {})
    assert restore(str(tmp_path / "w.tar"), settings.models_dir, settings, Report()).weights == ()


def test_old_files_are_replaced_and_others_stay(settings: Settings, tar: Path) -> None:
    for name, body in {"loras/sub/b.safetensors": b"old", "loras/mine.safetensors": b"mine"}.items():
        (settings.models_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.models_dir / name).write_bytes(body)
    report = Report()
    restore(str(tar), settings.models_dir, settings, report)
    assert_restored(settings.models_dir, {**FILES, "loras/mine.safetensors": b"mine"})
    assert any(line.startswith("replacing loras/sub/b.safetensors: 3 bytes before") for line in report)


def test_a_folder_in_the_way(settings: Settings, tar: Path) -> None:
    (settings.models_dir / "loras/sub/b.safetensors").mkdir(parents=True)
    with pytest.raises(WeightsError, match="a folder has its name"):
        restore(str(tar), settings.models_dir, settings, Report())
    assert files_below(settings.models_dir) == []


def test_a_file_where_a_folder_must_be(settings: Settings, tar: Path) -> None:
    (settings.models_dir / "loras").mkdir(parents=True)
    (settings.models_dir / "loras" / "sub").write_bytes(b"mine")
    with pytest.raises(WeightsError, match="a file has the name of its folder"):
        restore(str(tar), settings.models_dir, settings, Report())
    assert files_below(settings.models_dir) == ["loras/sub"]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Stands for a disk that fills up on the way: a write beyond `size` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fails_on_the_way(server: FileServer, settings: Settings, tar: Path, tmp_path: Path) -> None:
    url = server.put("/m.safetensors", FILES["checkpoints/m.safetensors"])
    with largest_file(2_000_000), pytest.raises(WeightsError, match=r"checkpoints/m\.safetensors cannot be written"):
        restore(str(tar), settings.models_dir, settings, Report())
    assert files_below(settings.models_dir) == []
    with largest_file(2_000_000), pytest.raises(WeightsError, match=r"vae/m\.safetensors cannot be written"):
        bake({"vaes": url}, tmp_path / "out" / "w.tar", settings, NO_TOKENS, Report())
    assert files_below(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("/no/such/weights.tar", "no weights tar at"),
        ("", "no weights tar"),
        ("ftp://example.com/w.tar", "http, https or file"),
        ("file://elsewhere/w.tar", "http, https or file"),
        ("file:///no/such/weights.tar", "no weights tar at"),
    ],
)
def test_locations_that_are_no_tar(settings: Settings, location: str, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        restore(location, settings.models_dir, settings, Report())
    assert not settings.models_dir.exists()


def test_a_link_that_fails(server: FileServer, settings: Settings) -> None:
    with pytest.raises(DownloadError, match="404"):
        restore(server.url + "/w.tar", settings.models_dir, settings, Report())


def test_a_disk_that_is_too_small(settings: Settings, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tar.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(WeightsError, match="no room on the disk") as caught:
        restore(str(tar), settings.models_dir, settings, Report())
    assert caught.value.seen == "1000 bytes free"
    assert files_below(settings.models_dir) == []


def test_stop(settings: Settings, tar: Path) -> None:
    stop = threading.Event()

    def report(line: str) -> None:
        stop.set()

    with pytest.raises(RestoreStoppedError):
        restore(str(tar), settings.models_dir, settings, report, stop)
    assert files_below(settings.models_dir) == []


@pytest.mark.parametrize("at", range(6))
def test_ctrl_c_leaves_nothing(settings: Settings, tar: Path, at: int) -> None:
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == at + 1:
            raise KeyboardInterrupt

    if at < 4:
        with pytest.raises(KeyboardInterrupt):
            restore(str(tar), settings.models_dir, settings, report)
        assert files_below(settings.models_dir) == []
    elif at == 4:  # after the last rename
        with pytest.raises(KeyboardInterrupt):
            restore(str(tar), settings.models_dir, settings, report)
        assert_restored(settings.models_dir)
    else:
        restore(str(tar), settings.models_dir, settings, report)
