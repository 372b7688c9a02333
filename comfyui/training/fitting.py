"""The size that each picture is trained at: a square, or the bucket nearest to its shape. Pure; sizes are in pixels."""

from __future__ import annotations

import math

from comfyui.errors import TrainingInputError

FITS = ("buckets", "crop")
STEP = 64
"""Sides are multiples of it, as in Kohya's sd-scripts (`bucket_reso_steps`): a VAE's 8 times a U-Net's 8."""
MAX_RESOLUTION = 2048
MAX_STRETCH = 2
"""The longest side of a bucket is `resolution` times this, the shortest `resolution` divided by it."""


def check_fit(resolution: int, fit: str) -> None:
    """Raise TrainingInputError unless pictures can be fitted like this."""
    if resolution % STEP or not STEP <= resolution <= MAX_RESOLUTION:
        raise TrainingInputError(
            f"resolution is {resolution}; it must be a multiple of {STEP} from {STEP} to {MAX_RESOLUTION}. "
            "SD 1.5 was made with 512, SDXL with 1024.",
            input_name="resolution",
        )
    if fit not in FITS:
        raise TrainingInputError(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.", input_name="fit")


def fitted_size(width: int, height: int, *, resolution: int, fit: str) -> tuple[int, int]:
    """The (width, height) for a picture of this size: `resolution` squared for "crop", else the bucket nearest to it.

    Near is the ratio of the sides: what is lost when the picture, scaled to cover the bucket, is cut at its edges.
    """
    if fit == "crop":
        return resolution, resolution

    def loss(bucket: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(bucket[0] / bucket[1]) - math.log(width / height)), -bucket[0] * bucket[1]

    return min(buckets(resolution), key=loss)


def buckets(resolution: int) -> list[tuple[int, int]]:
    """All (width, height) of buckets, sorted: sides in steps of 64, none of a larger area than `resolution` squared.

    So no picture needs more memory than a square one. The rule is that of aspect ratio bucketing in Kohya's sd-scripts
    (docs/train_README): for each side, the other is the longest that keeps to the area.
    """
    shortest = max(STEP, resolution // MAX_STRETCH // STEP * STEP)
    longest = resolution * MAX_STRETCH
    sizes = set()
    for side in range(shortest, longest + 1, STEP):
        other = min(longest, resolution * resolution // side // STEP * STEP)
        if other >= shortest:
            sizes |= {(side, other), (other, side)}
    return sorted(sizes)
