"""Memory of GPUs, from the answers of /system_stats."""

from __future__ import annotations

import pytest

from comfyui.engine.vram import vram_in_use

GIB = 1024**3


def gpu(total: int, free: int, kind: str = "cuda") -> dict[str, object]:
    return {"name": "a", "type": kind, "index": 0, "vram_total": total, "vram_free": free, "torch_vram_free": 0}


@pytest.mark.parametrize(
    ("devices", "used"),
    [
        ([], None),
        ([gpu(16 * GIB, 4 * GIB, "cpu")], None),
        ([gpu(16 * GIB, 4 * GIB)], 12 * GIB),
        ([gpu(16 * GIB, 4 * GIB), gpu(48 * GIB, 8 * GIB)], 40 * GIB),
    ],
)
def test_the_fullest_gpu_counts(devices: list[dict[str, object]], used: int | None) -> None:
    assert vram_in_use({"system": {}, "devices": devices}) == used
