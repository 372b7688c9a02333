"""Building blocks of the demo weights: seeded layers under the names that loaders look for, and a file writer.

Two things make a file small on disk and quick to make: a layer may be all zeros (in a residual network that is "pass
the input on"), and the writer leaves zero tensors as holes in the file.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

HEADER_ALIGN = 8


class Layers:
    """A state dict in the making. `tensors` maps full names to float32 tensors, in the order they were added.

    Random values come from one seeded stream, so the order of calls is part of the result. Where a `gain` is asked
    for, a layer's output is about `gain` times as large as its input; gain 0 makes the layer all zeros.
    """

    def __init__(self, seed: int) -> None:
        import torch

        self.tensors: Tensors = {}
        self._random = torch.Generator().manual_seed(seed)

    def noise(self, *shape: int, scale: float) -> torch.Tensor:
        """Random values with standard deviation `scale`.

        Uniform, not normal: torch draws uniform numbers from integers, so every processor gets the same bits, while
        its normal ones differ in the last place between instruction sets.
        """
        import torch

        return (torch.rand(*shape, generator=self._random) - 0.5) * (math.sqrt(12.0) * scale)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor as it is. Raises ValueError where the name is taken: a slip in a recipe."""
        if name in self.tensors:
            raise ValueError(f"the recipe makes {name} twice")
        self.tensors[name] = tensor

    def linear(self, name: str, out: int, inputs: int, *, gain: float = 1.0, bias: bool = True) -> None:
        """A fully connected layer: `name`.weight of (out, inputs), and a zero `name`.bias."""
        self._weight(name, (out, inputs), gain, bias)

    def conv(self, name: str, out: int, inputs: int, *, size: int = 3, gain: float = 1.0, bias: bool = True) -> None:
        """A convolution: `name`.weight of (out, inputs, size, size), and a zero `name`.bias."""
        self._weight(name, (out, inputs, size, size), gain, bias)

    def norm(self, name: str, channels: int) -> None:
        """A normalisation that only normalises: weight one, bias zero."""
        import torch

        self.put(f"{name}.weight", torch.ones(channels))
        self.put(f"{name}.bias", torch.zeros(channels))

    def taps(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """A layer whose weight was set by hand; a bias of zeros unless one is given."""
        import torch

        self.put(f"{name}.weight", weight)
        self.put(f"{name}.bias", torch.zeros(weight.shape[0]) if bias is None else bias)

    def _weight(self, name: str, shape: tuple[int, ...], gain: float, bias: bool) -> None:
        import torch

        fan_in = math.prod(shape[1:])
        self.put(f"{name}.weight", self.noise(*shape, scale=gain / math.sqrt(fan_in)) if gain else torch.zeros(shape))
        if bias:
            self.put(f"{name}.bias", torch.zeros(shape[0]))


def save_half(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    """Write the tensors as float16 to `path` (.safetensors), whole or not at all; its folder must exist.

    Format: huggingface/safetensors README: 8 bytes of little-endian header length, a JSON header padded with spaces,
    then the tensors' bytes. Raises OSError.
    """
    import torch

    halves = [tensor.to(torch.float16).contiguous() for tensor in tensors.values()]
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, half in zip(tensors, halves, strict=True):
        start, end = end, end + half.numel() * half.element_size()
        header[name] = {"dtype": "F16", "shape": list(half.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGN)

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for half in halves:
                if bool(half.any()):
                    out.write(half.numpy().tobytes())
                else:
                    out.seek(half.numel() * half.element_size(), os.SEEK_CUR)  # a hole reads as zeros
            out.truncate(8 + len(text) + end)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_complete(path: Path, metadata: dict[str, str]) -> bool:
    """True where `path` is a whole .safetensors file with this metadata; reads its header and its size only.

    Enough for files that are only ever renamed into place whole; it is no check of the tensors' bytes.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            size = os.fstat(stream.fileno()).st_size
            if length > size:
                return False
            header = json.loads(stream.read(length))
        seen = header.pop("__metadata__", None)
        end = max(int(entry["data_offsets"][1]) for entry in header.values())
    except FileNotFoundError:
        return False
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return False  # something else under this name: it is made anew
    return bool(seen == metadata) and size == 8 + length + end
