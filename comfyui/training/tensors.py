"""Safetensors files by their headers: what is in one, and how to write one. Pure but for the reads it is given.

The format is in comfyui.weights.judge.safetensors_check, which proves files; this module reads those that are proven,
or the head of one that is not here yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comfyui.errors import WeightsError
from comfyui.weights.judge.safetensors_check import MAX_HEADER_BYTES
from comfyui.weights.judge.signatures import SNIFF_BYTES, recognise

FLOATS = ("F32", "F16", "BF16")
"""Types whose numbers can be read and written here."""
LENGTH_BYTES = 8
_ALIGN = 8


@dataclass(frozen=True)
class Tensor:
    """One tensor: safetensors' name of its type ("BF16"), its shape, and its bytes (little-endian, row by row)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def numbers(self) -> npt.NDArray[np.float32]:
        """Its values as 32 bit floats. Raises ValueError for types that are no floats of 16 or 32 bits."""
        match self.dtype:
            case "F32":
                values = np.frombuffer(self.data, "<f4")
            case "F16":
                values = np.frombuffer(self.data, "<f2").astype(np.float32)
            case "BF16":
                # The upper half of a 32 bit float.
                values = (np.frombuffer(self.data, "<u2").astype("<u4") << 16).view("<f4")
            case _:
                raise ValueError(f"{self.dtype} is no type of a LoRA's numbers")
        return values.reshape(self.shape)

    def with_numbers(self, values: npt.NDArray[np.float32]) -> Tensor:
        """The same tensor with other values, rounded to its own type (to nearest, ties to even)."""
        match self.dtype:
            case "F32":
                data = values.astype("<f4").tobytes()
            case "F16":
                data = values.astype("<f2").tobytes()
            case _:
                bits = values.astype("<f4").view("<u4")
                data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        return Tensor(self.dtype, self.shape, data)


@dataclass(frozen=True)
class Described:
    """A tensor as a header describes it, without its bytes, which are at `begin` to `end` of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The head of a safetensors file: its tensors by name, its metadata, and where in the file the data begins."""

    tensors: Mapping[str, Described]
    metadata: Mapping[str, str]
    data_at: int


def read_header(read: Callable[[int, int], bytes], path: str) -> Header:
    """The header of the file that `read(start, length)` reads; `path` names it in errors. Raises WeightsError."""
    head = read(0, SNIFF_BYTES)
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if len(head) <= LENGTH_BYTES or length > MAX_HEADER_BYTES or head[LENGTH_BYTES] != ord("{"):
        seen = recognise(head)
        raise WeightsError(
            f"{path} is not a safetensors file: it is {seen.text}.{' ' + seen.advice if seen.advice else ''}",
            path=path,
            expected="a safetensors file",
            seen=seen.text,
        )
    try:
        document = json.loads(read(LENGTH_BYTES, length).decode("utf-8"))
        metadata = {str(key): str(value) for key, value in (document.pop("__metadata__", None) or {}).items()}
        tensors = {name: _described(entry) for name, entry in document.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not a usable safetensors file: its header cannot be read. Check it at its source.",
            path=path,
            expected="a valid safetensors header",
            seen="another text",
        ) from error
    return Header(tensors, metadata, LENGTH_BYTES + length)


def read_tensors(data: bytes, path: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """All tensors of a file small enough for memory, and its metadata. Raises WeightsError."""
    header = read_header(lambda start, length: data[start : start + length], path)
    body = memoryview(data)[header.data_at :]
    tensors = {
        name: Tensor(entry.dtype, entry.shape, bytes(body[entry.begin : entry.end]))
        for name, entry in header.tensors.items()
    }
    return tensors, header.metadata


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, bytes]:
    """A safetensors file in two parts, header and data: the same bytes for the same tensors and metadata.

    The order is the safetensors library's own: wide types first, so that every tensor is aligned, then by name.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-_width(item[1]), item[0]))
    document: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name, tensor in ordered:
        end = position + len(tensor.data)
        document[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, b"".join(tensor.data for _, tensor in ordered)


def _described(entry: Any) -> Described:
    begin, end = entry["data_offsets"]
    return Described(str(entry["dtype"]), tuple(int(side) for side in entry["shape"]), int(begin), int(end))


def _width(tensor: Tensor) -> int:
    return len(tensor.data) // max(1, math.prod(tensor.shape))
