"""Whole safetensors files pass; one byte less or more does not. The safetensors library itself is the judge."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
import safetensors as library
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui.errors import WeightsError
from comfyui.weights.judge.formats import structure_check
from comfyui.weights.judge.safetensors_check import SafetensorsCheck
from tests.weights.samples import safetensors, with_header

PATH = "loras/a.safetensors"
FILE = safetensors(1, 100)
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please log in to see this</body></html>"
U8 = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 486000000\n"


def library_reads(data: bytes) -> None:
    library.deserialize(data)  # type: ignore[no-untyped-call]


def check(data: bytes, piece: int = 1 << 20) -> None:
    checker = SafetensorsCheck(PATH)
    for start in range(0, len(data), piece):
        checker.feed(data[start : start + piece])
    checker.finish()


def tensors(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


@given(st.integers(0, 50), st.integers(2, 200).map(lambda n: 2 * n), st.integers(1, 300))
def test_whole_files_pass_in_any_pieces(seed: int, size: int, piece: int) -> None:
    data = safetensors(seed, size)
    library_reads(data)
    check(data, piece)


@settings(max_examples=60)
@given(st.integers(1, 64), st.data())
def test_any_prefix_and_any_appended_byte_is_refused(piece: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(FILE) - 1))
    with pytest.raises(WeightsError):
        check(FILE[:cut], piece)
    with pytest.raises(WeightsError, match="after its last tensor"):
        check(FILE + data.draw(st.binary(min_size=1, max_size=3)), piece)


def test_every_prefix_is_refused() -> None:
    for cut in range(len(FILE)):
        with pytest.raises(WeightsError) as caught:
            check(FILE[:cut])
        assert caught.value.path == PATH


def test_a_cut_file_says_how_much_is_missing() -> None:
    with pytest.raises(WeightsError, match=f"is cut.*{len(FILE)} bytes, seen {len(FILE) - 7} bytes") as caught:
        check(FILE[:-7])
    assert (caught.value.expected, caught.value.seen) == (f"{len(FILE)} bytes", f"{len(FILE) - 7} bytes")


def test_a_byte_too_many_is_noticed_before_the_end() -> None:
    checker = SafetensorsCheck(PATH)
    with pytest.raises(WeightsError, match="after its last tensor"):
        checker.feed(FILE + b"x")


@given(st.binary(max_size=200))
def test_what_passes_the_library_accepts(junk: bytes) -> None:
    try:
        check(junk)
    except WeightsError:
        return
    library_reads(junk)


entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "F32", "F64", "F4", "F8_E4M3", "BOOL", "F6_E2M3"]),
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2),
    }
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from("abc"), entry, max_size=2), st.integers(0, 16))
def test_headers_are_judged_as_the_library_does(header: dict[str, Any], size: int) -> None:
    data = with_header(json.dumps(header).encode(), bytes(size))
    try:
        library_reads(data)
        theirs = True
    except library.SafetensorError:
        theirs = False
    try:
        check(data)
        ours = True
    except WeightsError:
        ours = False
    assert ours == theirs


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (tensors(), 0),
        (tensors() + b"     ", 0),
        (tensors(a={"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]}), 3),
        (tensors(a={"dtype": "F8_E5M2", "shape": [3], "data_offsets": [0, 3]}), 3),
        (tensors(a={"dtype": "F99_NEW", "shape": [3], "data_offsets": [0, 5]}), 5),
        (tensors(a={"dtype": "F32", "shape": [], "data_offsets": [0, 4]}), 4),
        (tensors(z={**U8, "shape": [0], "data_offsets": [4, 4]}, a=U8), 4),
    ],
)
def test_good_headers(header: bytes, size: int) -> None:
    check(with_header(header, bytes(size)))


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"{nope}", "not JSON"),
        (b'{"\xff": 1}', "not JSON"),
        (b'{"a":' + b"[" * 50_000, "not JSON"),
        (b'{"a":%s,"a":%s}' % (json.dumps(U8).encode(), json.dumps(U8).encode()), "not JSON|twice"),
        (tensors(__metadata__={"a": 1}), "__metadata__"),
        (tensors(__metadata__=[]), "__metadata__"),
        (tensors(a=[]), "JSON object"),
        (tensors(a={}), "no usable"),
        (tensors(a={**U8, "shape": [4.0]}), "no usable"),
        (tensors(a={**U8, "shape": [True, 4]}), "no usable"),
        (tensors(a={**U8, "shape": [-1, -4]}), "no usable"),
        (tensors(a={**U8, "data_offsets": [0]}), "no usable"),
        (tensors(a={**U8, "data_offsets": [4, 0]}), "has -4 bytes"),
        (tensors(a={**U8, "dtype": "F32"}), "4 bytes, which is not F32"),
        (tensors(a={**U8, "data_offsets": [1, 5]}), "begins at byte 1"),
        (tensors(a=U8, b=U8), "begins at byte 0"),
        (tensors(a=U8, b={**U8, "data_offsets": [8, 12]}), "begins at byte 8"),
    ],
)
def test_bad_headers(header: bytes, word: str) -> None:
    with pytest.raises(WeightsError, match=word):
        check(with_header(header, bytes(12)))


BIG = 2**40


@pytest.mark.parametrize(
    ("shape", "good"),
    [
        ([2**64 - 1, 0], True),
        ([2**64, 0], False),
        ([10**4000, 0], False),
        ([BIG, BIG, 0], False),
        ([0, BIG, BIG], True),
        ([BIG, BIG], False),
    ],
)
def test_large_numbers_are_judged_as_the_library_does(shape: list[int], good: bool) -> None:
    data = with_header(tensors(a={**U8, "shape": shape, "data_offsets": [0, 0]}), b"")
    if good:
        library_reads(data)
        check(data)
        return
    with pytest.raises(library.SafetensorError):
        library_reads(data)
    with pytest.raises(WeightsError, match=r"no usable|which is not U8"):
        check(data)


def test_a_header_of_large_numbers_is_not_multiplied_out() -> None:
    """Their product would be a number of 8 MB, which takes minutes: the test's time limit."""
    header = tensors(a={**U8, "shape": [2**63] * 1_000_000})
    with pytest.raises(WeightsError, match="which is not U8"):
        check(with_header(header, bytes(4)))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "an empty file"),
        (PAGE, "a web page"),
        (b"\n  <html>", "a web page"),
        (b'{"error": "Unauthorized", "message": "You need to be logged in to download this file"}', "a JSON text"),
        (b'{"e":1}', "a JSON text"),
        (POINTER, "a Git LFS pointer.*resolve"),
        (b"PK\x03\x04\x00\x00\x08\x08" + bytes(100), "a zip archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(100), "a Python pickle"),
        (b"GGUF\x03\0\0\0" + bytes(100), "a GGUF file"),
        (b"\x1f\x8b\x08" + bytes(100), "compressed with gzip"),
        (bytes(100), "of no known format"),
        (b"Access denied, and a good day to you, from a server that says so in plain text", "of no known format"),
        ((100_000_001).to_bytes(8, "little") + b"{" + bytes(100), "not a safetensors file"),
    ],
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_what_is_not_safetensors_is_named(data: bytes, word: str, piece: int) -> None:
    with pytest.raises(WeightsError, match=word):
        check(data, piece)


def test_a_web_page_is_refused_at_once() -> None:
    with pytest.raises(WeightsError, match="a web page"):
        SafetensorsCheck(PATH).feed(PAGE)


def test_only_the_header_is_kept() -> None:
    checker = SafetensorsCheck(PATH)
    size = 64 * 2**20
    header = tensors(a={"dtype": "U8", "shape": [size], "data_offsets": [0, size]})
    piece = bytes(2**20)
    tracemalloc.start()
    checker.feed(with_header(header, b""))
    for _ in range(64):
        checker.feed(piece)
    checker.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("extension", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".PT"])
def test_pickles_are_refused_unless_asked_for(extension: str) -> None:
    path = f"embeddings/a{extension}"
    with pytest.raises(WeightsError, match=r"can run any code.*allow_pickle"):
        structure_check(path, allow_pickle=False)
    for body in (b"PK\x03\x04" + bytes(100), b"\x80\x02}q"):
        checker = structure_check(path, allow_pickle=True)
        checker.feed(body)
        checker.feed(bytes(100))
        checker.finish()


@pytest.mark.parametrize(("path", "good"), [("unet/a.gguf", b"GGUF\3"), ("vae/a.pt", b"PK\3\4"), ("vae/a.SFT", FILE)])
@pytest.mark.parametrize(("bad", "word"), [(PAGE, "web page"), (POINTER, "LFS pointer"), (b'{"a": 1}', "JSON")])
def test_every_format_names_what_came_instead(path: str, good: bytes, bad: bytes, word: str) -> None:
    checker = structure_check(path, allow_pickle=True)
    checker.feed(good)
    checker.finish()
    checker = structure_check(path, allow_pickle=True)
    with pytest.raises(WeightsError, match=word):  # noqa: PT012 (a short body is judged at its end)
        checker.feed(bad)
        checker.finish()


@pytest.mark.parametrize("path", ["loras/a", "loras/a.zip", "loras/a.safetensors.html", "configs/a.yaml"])
def test_other_extensions_are_refused(path: str) -> None:
    with pytest.raises(WeightsError, match=r"\.safetensors, \.sft, \.gguf"):
        structure_check(path, allow_pickle=False)
