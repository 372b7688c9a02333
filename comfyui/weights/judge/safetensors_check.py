"""Is this stream of bytes a whole safetensors file, not one byte short and not one too long?

Pure and incremental: only the header is kept, whatever the file's size. The tensors' values are not looked at; that
they are the right ones is what a SHA-256 is for.

The format (https://github.com/huggingface/safetensors#format): 8 bytes, unsigned little-endian, give the length N of
the header; N bytes of JSON follow, that begin with "{" and may be padded with spaces; the rest is one buffer. The JSON
maps each tensor's name to its dtype, its shape and data_offsets [begin, end) in the buffer, which the tensors cover
without a gap; "__metadata__" maps text to text.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeGuard

from comfyui.errors import WeightsError
from comfyui.weights.judge.signatures import SNIFF_BYTES, recognise

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

_LENGTH_BYTES = 8
_LARGEST = 2**64 - 1
"""The safetensors library counts in 64 bits, and refuses what it cannot count."""

# Bits, not bytes: the 4 and 6 bit floats are packed.
_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class SafetensorsCheck:
    """Feed it the file's bytes in order, then `finish`; either raises WeightsError as soon as the file is wrong.

    `path` names the file in the errors.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._head = bytearray()
        self._header_length: int | None = None
        self._total: int | None = None
        self._seen = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the file."""
        self._seen += len(chunk)
        if self._total is None:
            self._head += chunk
            self._read_head(at_end=False)
        if self._total is not None and self._seen > self._total:
            self._fail_length("has bytes after its last tensor", self._total, f"at least {self._seen} bytes")

    def finish(self) -> None:
        """Say that there are no more bytes."""
        if self._total is None:
            self._read_head(at_end=True)
        if self._total is None:
            # Only a cut header gets here: everything else about a head has been judged.
            header_end = _LENGTH_BYTES + (self._header_length or 0)
            self._fail_length("ends inside its header", header_end, f"{self._seen} bytes")
        if self._seen != self._total:
            self._fail_length("is cut: its tensors are not all there", self._total, f"{self._seen} bytes")

    def _read_head(self, *, at_end: bool) -> None:
        if self._header_length is None:
            # A verdict needs 9 bytes; waiting for more lets a web page be called a web page, however small the chunks.
            if len(self._head) < SNIFF_BYTES and not at_end:
                return
            self._header_length = self._read_length()
        end = _LENGTH_BYTES + self._header_length
        if len(self._head) >= end:
            self._total = end + self._check_header(bytes(self._head[_LENGTH_BYTES:end]))
            self._head.clear()

    def _read_length(self) -> int:
        length = int.from_bytes(self._head[:_LENGTH_BYTES], "little")
        if len(self._head) <= _LENGTH_BYTES or length > MAX_HEADER_BYTES or self._head[_LENGTH_BYTES] != ord("{"):
            self._fail_foreign()
        return length

    def _check_header(self, header: bytes) -> int:
        """Return the length in bytes of the buffer that the header describes."""
        try:
            tensors = json.loads(header.decode("utf-8"), object_pairs_hook=self._no_duplicates)
        except (ValueError, RecursionError) as e:
            raise self._header_error("its header is not JSON") from e
        metadata = tensors.pop("__metadata__", None)
        if metadata is not None and not (
            isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        ):
            raise self._header_error("its __metadata__ is not a map from text to text")
        ranges = sorted((*self._tensor_range(name, tensor), name) for name, tensor in tensors.items())
        position = 0
        for begin, end, name in ranges:
            if begin != position:
                fault = f"tensor {name[:200]!r} begins at byte {begin} of the data"
                raise self._header_error(f"{fault}, but the one before ends at {position}")
            position = end
        return position

    def _tensor_range(self, name: str, tensor: Any) -> tuple[int, int]:
        shown = f"tensor {name[:200]!r}"
        if not isinstance(tensor, dict):
            raise self._header_error(f"{shown} is not described by a JSON object")
        dtype, shape, offsets = tensor.get("dtype"), tensor.get("shape"), tensor.get("data_offsets")
        if not (isinstance(dtype, str) and _whole_numbers(shape) and _whole_numbers(offsets) and len(offsets) == 2):
            raise self._header_error(f"{shown} has no usable dtype, shape and data_offsets")
        begin, end = offsets
        # A dtype that came after this code was written still has to fit the offsets of its neighbours.
        bits = _DTYPE_BITS.get(dtype)
        if end < begin or (bits is not None and _count(shape) * bits != (end - begin) * 8):
            raise self._header_error(f"{shown} has {end - begin} bytes, which is not {dtype} of shape {shape!s:.100}")
        return begin, end

    def _no_duplicates(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise self._header_error("its header has a name twice")
        return result

    def _header_error(self, fault: str) -> WeightsError:
        return WeightsError(
            f"{self._path} is not a usable safetensors file: {fault}. The file is damaged or was made wrongly; "
            "check it at its source.",
            path=self._path,
            expected="a valid safetensors header",
            seen=fault,
        )

    def _fail_length(self, fault: str, expected: int, seen: str) -> NoReturn:
        raise WeightsError(
            f"{self._path} {fault}: its header says {expected} bytes, seen {seen}. "
            "Fetch it again; if that does not help, the file at its source is damaged.",
            path=self._path,
            expected=f"{expected} bytes",
            seen=seen,
        )

    def _fail_foreign(self) -> NoReturn:
        seen = recognise(bytes(self._head))
        raise WeightsError(
            f"{self._path} is not a safetensors file: it is {seen.text}.{' ' + seen.advice if seen.advice else ''}",
            path=self._path,
            expected="a safetensors file",
            seen=seen.text,
        )


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    # bool is a kind of int in Python, but not in JSON.
    return isinstance(value, list) and all(type(number) is int and 0 <= number <= _LARGEST for number in value)


def _count(shape: list[int]) -> float:
    """How many values a tensor has; infinity as soon as there are more than the library can count.

    A header that was made to do harm may hold millions of large numbers, whose whole product takes minutes.
    """
    count = 1
    for length in shape:
        count *= length
        if count > _LARGEST:
            return float("inf")
    return count
