"""Safetensors read and written as the library does it, and numbers rounded as torch does."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from comfyui.errors import WeightsError
from comfyui.training.tensors import Tensor, read_header, read_tensors, safetensors_bytes

TENSORS = {
    "b.diff": torch.linspace(-3, 3, 7),
    "a.weight": torch.linspace(-1, 1, 12).reshape(3, 4).to(torch.bfloat16),
    "c.alpha": torch.tensor(1.0, dtype=torch.float16),
    "empty": torch.zeros(0, 4),
}


def test_what_is_written_is_what_the_library_writes() -> None:
    data = save(TENSORS)
    tensors, metadata = read_tensors(data, "x")
    head, body = safetensors_bytes(tensors, metadata)
    assert body == data[-len(body) :]
    for name, tensor in load(head + body).items():
        assert torch.equal(tensor, TENSORS[name])


def test_metadata_is_kept_and_the_bytes_do_not_depend_on_its_order() -> None:
    tensors, _ = read_tensors(save(TENSORS), "x")
    first = safetensors_bytes(tensors, {"a": "1", "ü": "2"})
    assert first == safetensors_bytes(dict(reversed(tensors.items())), {"ü": "2", "a": "1"})
    assert read_tensors(b"".join(first), "x")[1] == {"a": "1", "ü": "2"}
    assert len(first[0]) % 8 == 0


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_numbers_are_rounded_as_torch_rounds_them(dtype: torch.dtype, name: str) -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    wanted = values.to(dtype)
    written = Tensor(name, (4096,), b"").with_numbers(values.numpy())
    assert np.array_equal(written.numbers(), wanted.float().numpy())
    assert written.data == wanted.view(torch.uint8).numpy().tobytes()


def test_numbers_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="F8_E4M3"):
        Tensor("F8_E4M3", (1,), b"\0").numbers()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!doctype html><html></html>" * 9,
        struct.pack("<Q", 2**40) + b"{" * 60,
        struct.pack("<Q", 60) + b"{" * 60,
        struct.pack("<Q", 60) + b'{"a": {"dtype": "F32"}}'.ljust(60),
        struct.pack("<Q", 60) + b'["a"]'.ljust(60),
    ],
)
def test_what_has_no_header_is_named(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        read_header(lambda start, length: data[start : start + length], "checkpoints/a.safetensors")
    assert caught.value.path == "checkpoints/a.safetensors"
