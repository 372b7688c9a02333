"""weights_manifest.json: what is written can be read, and nothing odd can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.errors import ManifestError
from comfyui.weights.folders import MODEL_FOLDERS, path_key, safe_file_name
from comfyui.weights.manifest import MAX_MANIFEST_BYTES, Manifest, Weight, room_for

GOOD: dict[str, Any] = {
    "path": "loras/a.safetensors",
    "url": "https://example.com/a.safetensors",
    "size": 5,
    "sha256": "0" * 64,
}

names = st.text(min_size=1, max_size=300).map(safe_file_name).filter(bool)
weights = st.builds(
    Weight,
    path=st.tuples(st.sampled_from(sorted(MODEL_FOLDERS)), names).map("/".join),
    url=st.none()
    | st.from_regex(r"https?://[a-z0-9.:]{1,9}0/[!-\"$->A-z~ぁ-ん]{0,40}", fullmatch=True).filter(
        lambda url: ":" not in url.split("/")[2]
    ),
    size=st.integers(0, 2**63 - 1),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    offset=st.none() | st.integers(0, 2**63 - 1),
)
manifests = st.lists(weights, max_size=4, unique_by=lambda weight: path_key(weight.path)).map(
    lambda some: Manifest(tuple(some))
)


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    data = manifest.dump()
    assert Manifest.parse(data) == manifest
    assert Manifest.parse(data.decode() + " " * 50 + "\n") == manifest
    room = room_for((weight.path.partition("/")[0], weight.url) for weight in manifest.weights)
    assert len(data) <= room


def test_the_format_is_the_documented_one() -> None:
    weight = Weight("loras/a.safetensors", None, 5, "0" * 64, offset=66048)
    assert json.loads(Manifest((weight,)).dump()) == {
        "version": 1,
        "weights": [{"path": "loras/a.safetensors", "url": None, "size": 5, "sha256": "0" * 64, "offset": 66048}],
    }


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"path": None}, "path is not text"),
        ({"path": "loras"}, "model folder and a file"),
        ({"path": "loras/\ud800.pt"}, "control character"),
        ({"path": "../a"}, "start with a dot"),
        ({"url": 7}, "neither text nor null"),
        ({"url": "ftp://example.com/a"}, "not an http"),
        ({"url": "https:///a"}, "not an http"),
        ({"url": "https://[/a"}, "cannot be read"),
        ({"url": "https://example.com/a b"}, "space"),
        ({"url": "https://example.com/\ud800"}, "invisible"),
        ({"url": "https://example.com/a?token=SECRET"}, "secrets"),
        ({"url": "https://example.com/a?"}, "secrets"),
        ({"url": "https://example.com/a#SECRET"}, "secrets"),
        ({"url": "https://SECRET@example.com/a"}, "secrets"),
        ({"size": -1}, "size"),
        ({"size": 1.0}, "size"),
        ({"size": True}, "size"),
        ({"size": "5"}, "size"),
        ({"size": 2**63}, "size"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"sha256": "0" * 64 + "\n"}, "sha256"),
        ({"sha256": None}, "sha256"),
        ({"offset": -1}, "offset"),
        ({"offset": None}, "offset"),
        ({"offset": "1"}, "offset"),
    ],
)
def test_a_bad_entry_is_named(change: dict[str, Any], word: str) -> None:
    entry = {**GOOD, **change}
    with pytest.raises(ManifestError, match=word) as caught:
        Manifest.parse(json.dumps({"version": 1, "weights": [entry]}))
    assert caught.value.entry == (entry["path"] if isinstance(entry["path"], str) else "entry 0")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("key", ["path", "url", "size", "sha256"])
def test_a_missing_key_is_named(key: str) -> None:
    entry = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ManifestError, match=f"lacks the key '{key}'"):
        Manifest.parse(json.dumps({"version": 1, "weights": [entry]}))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (b"\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "version 1"),
        ("{}", "version 1"),
        ('{"version": 2, "weights": []}', "seen 2"),
        ('{"version": 1}', "lacks the key 'weights'"),
        ('{"version": 1, "weights": {}}', "must be a list"),
        ('{"version": 1, "weights": [3]}', "entry 0 must be"),
        ('{"version": 1, "weights": [], "x": 1}', "unknown key 'x'"),
        ('{"version": 1, "weights": [], "weights": []}', "twice"),
    ],
)
def test_a_bad_document(text: str | bytes, word: str) -> None:
    with pytest.raises(ManifestError, match=word):
        Manifest.parse(text)


@pytest.mark.parametrize("second", ["loras/a.safetensors", "loras/A.safetensors"])
def test_two_entries_for_one_file(second: str) -> None:
    with pytest.raises(ManifestError, match="would be one file") as caught:
        Manifest.parse(json.dumps({"version": 1, "weights": [GOOD, {**GOOD, "path": second}]}))
    assert caught.value.entry == second
    with pytest.raises(ManifestError, match="would be one file"):
        Manifest((Weight(**GOOD), Weight(**{**GOOD, "path": second}))).dump()


def test_dump_refuses_what_parse_would() -> None:
    with pytest.raises(ManifestError, match="secrets"):
        Manifest((Weight(**{**GOOD, "url": "https://example.com/a?token=x"}),)).dump()


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "weights_manifest.json"
    path.write_text("old")
    manifest = Manifest((Weight(**GOOD),))
    manifest.save(path)
    assert Manifest.load(path) == manifest
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "weights_manifest.json"
    target.mkdir()
    with pytest.raises(OSError, match="weights_manifest"):
        Manifest(()).save(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_giant_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with path.open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ManifestError, match="limit"):
        Manifest.load(path)


def test_a_file_in_a_file() -> None:
    inside = {**GOOD, "path": "loras/A.safetensors/b.safetensors"}
    with pytest.raises(ManifestError, match="lies in it"):
        Manifest.parse(json.dumps({"version": 1, "weights": [inside, GOOD]}))


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://civitai.com/api/download/models/12?fileId=34", True),
        ("https://civitai.com/api/download/models/12?type=Training+Data&format=SafeTensor&size=full&fp=fp16", True),
        ("http://mirror.example/x/api/download/models/12?type=Model", True),
        ("https://civitai.com/api/download/models/12?token=abc", False),
        ("https://civitai.com/api/download/models/12?fileId=34&token=abc", False),
        ("https://civitai.com/api/download/models/12?fileId=abc", False),
        ("https://civitai.com/api/download/models/12?type=" + "x" * 61, False),
        ("https://civitai.com/api/download/models/12?", False),
        ("https://civitai.com/api/download/models/12/x?type=Model", False),
        ("https://example.com/a.safetensors?type=Model", False),
    ],
)
def test_which_queries_may_be_written_down(url: str, good: bool) -> None:
    manifest = Manifest((Weight("loras/a.safetensors", url, 1, "0" * 64),))
    if good:
        assert Manifest.parse(manifest.dump()) == manifest
    else:
        with pytest.raises(ManifestError, match="may hold secrets"):
            manifest.dump()
