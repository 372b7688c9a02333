"""The weights of weights_manifest.json: there, absent, wrong, and both kinds of check."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comfyui.errors import ManifestError, StoppedError, StorageError, WeightsError
from comfyui.settings import Settings
from comfyui.weights.bring.present import quick_check
from comfyui.weights.judge.verify import Digest
from comfyui.weights.manifest import MANIFEST_NAME, Manifest, Weight
from comfyui.weights.restore.image_weights import ensure_weights, prepare_weights
from tests.weights.samples import safetensors, sha256, with_header
from tests.weights.tars import IMPATIENT, Lines, RangeServer, baked, flipped, on_disk

FILES = {
    "checkpoints/m.safetensors": safetensors(1, 300_000),
    "loras/a.safetensors": safetensors(2, 600),
    "vae/v.pt": b"PK\x03\x04" + bytes(500),
}
PATHS = list(FILES)


@pytest.fixture
def storage() -> Iterator[RangeServer]:
    with RangeServer() as running:
        yield running


@pytest.fixture
def manifest(storage: RangeServer) -> Manifest:
    return Manifest(
        tuple(Weight(path, storage.put(f"/{path}", body), len(body), sha256(body)) for path, body in FILES.items())
    )


Ensure = Callable[..., Lines]


@pytest.fixture
def ensure(manifest: Manifest, settings: Settings) -> Ensure:
    def ensure(manifest: Manifest = manifest, **more: object) -> Lines:
        lines = Lines()
        ensure_weights(manifest, settings.models_dir, settings, lines, options=IMPATIENT, **more)  # type: ignore[arg-type]
        return lines

    return ensure


def put(models: Path, path: str, body: bytes) -> None:
    (models / path).parent.mkdir(parents=True, exist_ok=True)
    (models / path).write_bytes(body)


def test_what_is_absent_is_fetched_and_what_is_there_is_not(
    ensure: Ensure, storage: RangeServer, settings: Settings
) -> None:
    assert "3 weight files of weights_manifest.json: 0 there and looked at, 3 fetched" in ensure().text
    assert on_disk(settings.models_dir) == FILES
    storage.asked.clear()
    assert ensure().lines[-1].startswith("3 weight files of weights_manifest.json: 3 there and looked at, 0 fetched")
    assert ensure(full=True).lines[-1].startswith("3 weight files of weights_manifest.json: 3 there and hashed")
    (settings.models_dir / PATHS[1]).unlink()
    ensure()
    assert {asked.path for asked in storage.asked} == {f"/{PATHS[1]}"}
    assert on_disk(settings.models_dir) == FILES


def test_an_empty_manifest_makes_no_folder(ensure: Ensure, settings: Settings) -> None:
    assert ensure(Manifest(())).lines == []
    assert not settings.models_dir.exists()


@pytest.mark.parametrize(
    ("path", "damaged"),
    [
        (PATHS[0], FILES[PATHS[0]][:-1]),
        (PATHS[0], FILES[PATHS[0]] + b"x"),
        (PATHS[0], b""),
        (PATHS[1], b"<html>".ljust(len(FILES[PATHS[1]]))),
        (PATHS[1], flipped(FILES[PATHS[1]], 9)),
        (PATHS[1], flipped(FILES[PATHS[1]], 0, 128)),
        (PATHS[1], flipped(FILES[PATHS[1]], 7)),
        (PATHS[2], flipped(FILES[PATHS[2]], 0)),
    ],
)
def test_what_a_look_shows_to_be_wrong_is_replaced(
    ensure: Ensure, settings: Settings, path: str, damaged: bytes
) -> None:
    ensure()
    put(settings.models_dir, path, damaged)
    lines = ensure()
    assert on_disk(settings.models_dir) == FILES
    assert f"{path} is there and wrong (" in lines.text
    assert f"replacing {path}: {len(damaged)} bytes before" in lines.text
    assert "2 there and looked at, 1 fetched" in lines.text


def test_only_a_full_check_sees_a_flipped_bit(
    ensure: Ensure, settings: Settings, make_settings: Callable[..., Settings], manifest: Manifest
) -> None:
    ensure()
    damaged = flipped(FILES[PATHS[0]], 200_000)
    put(settings.models_dir, PATHS[0], damaged)
    assert "3 there and looked at" in ensure().text
    assert (settings.models_dir / PATHS[0]).read_bytes() == damaged
    lines = Lines()
    full = make_settings(weights_verify="full")
    ensure_weights(manifest, settings.models_dir, full, lines, options=IMPATIENT)
    assert "2 there and hashed, 1 fetched" in lines.text
    assert on_disk(settings.models_dir) == FILES


def test_a_look_reads_no_more_than_the_header(tmp_path: Path) -> None:
    size = 50 * 2**30
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    file = tmp_path / "w.safetensors"
    file.write_bytes(with_header(header, b""))
    with file.open("ab") as opened:
        opened.truncate(8 + len(header) + size)
    quick_check(allow_pickle=False)("loras/w.safetensors", Digest(8 + len(header) + size, ""), file)


def test_a_small_file_with_an_empty_header(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(with_header(b"{}", b""))
    quick_check(allow_pickle=False)("loras/w.safetensors", Digest(10, ""), tmp_path / "w")
    (tmp_path / "w").write_bytes(b"")
    with pytest.raises(WeightsError, match="empty file"):
        quick_check(allow_pickle=False)("loras/w.safetensors", Digest(0, ""), tmp_path / "w")


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ({"status": 404}, "404"),
        ({"body": flipped(FILES[PATHS[1]], 500)}, "expected [0-9a-f]{64}, seen [0-9a-f]{64}"),
        ({"body": b"short"}, "expected 765 bytes|expected 773 bytes"),
    ],
)
def test_what_cannot_be_had(
    ensure: Ensure, storage: RangeServer, settings: Settings, served: dict[str, object], words: str
) -> None:
    put(settings.models_dir, PATHS[1], b"old")
    storage.put(f"/{PATHS[1]}", **{"body": FILES[PATHS[1]], **served})  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=words) as caught:
        ensure()
    assert caught.value.path == PATHS[1]
    assert storage.url + "/" + PATHS[1] in str(caught.value)
    assert on_disk(settings.models_dir) == {PATHS[1]: b"old"}


def test_absent_and_nobody_knows_from_where(ensure: Ensure, manifest: Manifest, settings: Settings) -> None:
    no_url = Manifest((*manifest.weights[:2], replace(manifest.weights[2], url=None)))
    with pytest.raises(WeightsError, match=r"vae/v\.pt is not in the models folder .* has no url"):
        ensure(no_url)
    assert on_disk(settings.models_dir) == {}
    put(settings.models_dir, PATHS[2], FILES[PATHS[2]])
    ensure(no_url)
    assert on_disk(settings.models_dir) == FILES


def test_pickles_can_be_refused(ensure: Ensure, settings: Settings) -> None:
    with pytest.raises(WeightsError, match="can run any code"):
        ensure(allow_pickle=False)
    assert not settings.models_dir.exists()


def test_stop_and_a_folder_in_the_way(ensure: Ensure, settings: Settings) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        ensure(stop=stop)
    (settings.models_dir / PATHS[0]).mkdir(parents=True)
    with pytest.raises(StorageError, match="a folder has its name"):
        ensure()
    assert on_disk(settings.models_dir) == {}


def test_prepare_brings_the_images_weights_and_then_the_tars(
    manifest: Manifest, storage: RangeServer, settings: Settings, tmp_path: Path
) -> None:
    own = Manifest(manifest.weights[:1])
    own.save(tmp_path / MANIFEST_NAME)
    tar = storage.put("/w.tar", baked({PATHS[1]: FILES[PATHS[1]]})[0])
    prepare_weights(tar, settings, Lines(), manifest_path=tmp_path / MANIFEST_NAME)
    assert on_disk(settings.models_dir) == {path: FILES[path] for path in PATHS[:2]}
    lines = Lines()
    prepare_weights(None, settings, lines, manifest_path=tmp_path / MANIFEST_NAME)
    assert "1 there and looked at" in lines.text


def test_prepare_with_nothing_to_do(settings: Settings, tmp_path: Path) -> None:
    lines = Lines()
    prepare_weights(None, settings, lines, manifest_path=tmp_path / "none.json")
    assert lines.lines == []
    (tmp_path / MANIFEST_NAME).write_text("[]")
    with pytest.raises(ManifestError):
        prepare_weights(None, settings, lines, manifest_path=tmp_path / MANIFEST_NAME)
