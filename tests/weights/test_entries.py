"""How a training input is split into entries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.weights.sources import parse_list

A, B = "https://example.com/a.safetensors", "https://example.com/b.safetensors"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (None, []),
        ("", []),
        (" \n\t\n", []),
        ("a", ["a"]),
        (" a \r\n\n b\n", ["a", "b"]),
        (f"{A}\n{B}", [A, B]),
        (f"{A},{B}", [A, B]),
        (f"{A}, {B}", [A, B]),
        (f"{A},\n{B},", [A, B]),
        (f"{A} , {B}", [A, B]),
        (f"{A},hf://me/repo/c.safetensors", [A, "hf://me/repo/c.safetensors"]),
        (f"{A}, me/repo", [A, "me/repo"]),
        ("me/repo,you/other", ["me/repo", "you/other"]),
        (f"me/repo,{A}", ["me/repo", A]),
        (f"# my loras\n{A} # the first\n#{B}\n  # no", [A]),
        (f"{A}#name=b.safetensors", [f"{A}#name=b.safetensors"]),
        (f"{A}#name=b.safetensors # mine", [f"{A}#name=b.safetensors"]),
        (f"{A},# none", [A]),
        ("https://example.com/a,b.safetensors?x=1,2", ["https://example.com/a,b.safetensors?x=1,2"]),
        ("https://example.com/a.pt?ids=1,me/repo", ["https://example.com/a.pt?ids=1,me/repo"]),
        (" , ,\n,", []),
    ],
)
def test_lists(text: str | None, entries: list[str]) -> None:
    assert parse_list(text) == entries


_URLS = st.from_regex(r"https://[a-z]{1,8}\.com/[A-Za-z0-9._,=?&%-]{0,20}[a-z]", fullmatch=True)
_REPOS = st.from_regex(r"[a-z]{1,8}/[a-z0-9]{1,8}", fullmatch=True)
_BETWEEN = st.sampled_from(["\n", ", ", ",\n", " ,\n", "\n\n", " # why\n", "\n# https://example.com/x\n"])


@given(st.lists(st.tuples(st.one_of(_URLS, _REPOS), _BETWEEN), max_size=6))
def test_entries_survive_any_way_of_listing_them(pairs: list[tuple[str, str]]) -> None:
    assert parse_list("".join(entry + between for entry, between in pairs)) == [entry for entry, _ in pairs]


@given(st.text(alphabet="ab/:#, \nhtps.", max_size=60))
def test_no_entry_is_empty_or_has_spaces_around_it(text: str) -> None:
    for entry in parse_list(text):
        assert entry == entry.strip() != ""
        assert parse_list(entry) == [entry] or "," in entry
