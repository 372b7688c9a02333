"""When a file that is kept surely is what a link gives, and what an index on the disk may not make us believe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyui.weights.linked.index import Content, Index, Kept
from comfyui.weights.linked.names import content_name, is_by_link, is_link

A, B = "a" * 64, "b" * 64
KEPT = {"sha256": A, "size": 100, "used": 1.5}
LINK = {"link": "key", "size": 100, "validator": '"one"', "sha256": A}


def content(**changes: Any) -> Content:
    known: dict[str, Any] = {"link": "key", "size": 100, "validator": '"one"', "published": None, "given": None}
    return Content(**{**known, **changes})


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ({}, True),
        ({"validator": '"two"'}, False),
        ({"validator": None}, False),
        ({"size": 101}, False),
        ({"size": None}, False),
        ({"link": "other"}, False),
        ({"link": "other", "published": A}, True),
        ({"link": "other", "given": A}, False),
        ({"validator": None, "given": A}, True),
        ({"validator": None, "given": B}, False),
        ({"published": B}, False),
    ],
)
def test_what_a_server_says_and_what_a_caller_claims(asked: dict[str, Any], same: bool) -> None:
    index = Index()
    index.add(Kept(A, 100, 1.5), content())
    assert (index.find(content(**asked)) is not None) == same


def test_an_answer_without_validators_finds_nothing() -> None:
    index = Index()
    index.add(Kept(A, 100, 1.5), content(validator=None))
    assert index.find(content(validator=None)) is None


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    index = Index()
    index.add(Kept(A, 100, 1.5), content())
    index.add(Kept(B, 7, 3.0), content(link="other", validator=None))
    index.use(index.files[A], 9.0)
    index.save(tmp_path / "index.json")
    assert Index.load(tmp_path / "index.json") == index
    assert [kept.sha256 for kept in index.least_recently_used()] == [B, A]
    index.forget(A)
    assert (list(index.files), list(index.links)) == ([B], ["other"])
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


@pytest.mark.parametrize(
    "document",
    [
        {"version": 2, "files": [KEPT], "links": [LINK]},
        {"version": 1, "files": [{**KEPT, "sha256": "../../loras/baked.safetensors"}], "links": []},
        {"version": 1, "files": [{**KEPT, "size": "100"}], "links": []},
        {"version": 1, "files": [{**KEPT, "used": None}], "links": []},
        {"version": 1, "files": [{**KEPT, "more": 1}], "links": []},
        {"version": 1, "files": [KEPT], "links": [{**LINK, "sha256": None}]},
        {"version": 1, "files": [KEPT]},
        {"version": 1, "files": [KEPT], "links": 7},
        [],
    ],
)
def test_an_index_that_makes_no_sense_is_as_good_as_none(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "index.json"
    assert Index.load(path) == Index()
    path.write_text(json.dumps({"version": 1, "files": [KEPT], "links": [LINK]}))
    assert Index.load(path).files == {A: Kept(A, 100, 1.5)}
    path.write_text(json.dumps(document))
    assert Index.load(path) == Index()
    path.write_text("[" * 100_000)
    assert Index.load(path) == Index()


@pytest.mark.parametrize(
    ("value", "link"),
    [
        ("https://example.com/a.safetensors", True),
        ("HTTP://example.com/a", True),
        (" hf://me/repo/a.safetensors\n", True),
        ("me/repo", True),
        ("sub/a.safetensors", False),
        ("sub/sub/a.safetensors", False),
        ("a.safetensors", False),
        ("ftp://example.com/a", False),
        ("None", False),
        ("", False),
        (None, False),
        (["1", 0], False),
    ],
)
def test_what_is_a_link(value: object, link: bool) -> None:
    assert is_link(value) == link


def test_names_of_contents() -> None:
    assert content_name("my lora.safetensors", A) == f"my lora-{'a' * 12}.safetensors"
    assert content_name("x.gguf", A, whole=True) == f"x-{A}.gguf"
    long = content_name("ä" * 125 + ".safetensors", A)
    assert len(long.encode()) <= 255
    assert long.endswith(f"ä-{'a' * 12}.safetensors")
    assert is_by_link("by-link/0/a.safetensors")
    assert not is_by_link("by-link.safetensors")
    assert not is_by_link(7)
