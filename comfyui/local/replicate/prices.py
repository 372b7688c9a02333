"""What a second of Replicate's hardware costs, and what runs have cost so far. Pure.

Source: https://replicate.com/pricing as it was in 2025 (its T4 and A100 were the same in March 2026). Replicate may
change it at any time, so whoever knows better says so with --price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

AS_OF = "2025"
PRICES: Mapping[str, float] = MappingProxyType(
    {
        "cpu": 0.000100,
        "gpu-t4": 0.000225,
        "gpu-a40-small": 0.000575,
        "gpu-a40-large": 0.000725,
        "gpu-l40s": 0.000975,
        "gpu-a100-large": 0.001400,
        "gpu-h100": 0.001525,
    }
)
"""US dollars for each second, by the hardware's SKU."""


def price_of(hardware: str, given: float | None = None) -> float | None:
    """Dollars for a second of `hardware`: what was given, else the table's; None where nobody knows."""
    return given if given is not None else PRICES.get(hardware)


def price_text(hardware: str) -> str:
    """The price of hardware for a list, "" where it is unknown."""
    price = PRICES.get(hardware)
    return f"${price:.6f} a second (as of {AS_OF})" if price is not None else ""


def cost_text(seconds: Iterable[float], hardware: str, given: float | None = None) -> str:
    """A sentence on what runs of these seconds have cost, with the formula."""
    run_s = sum(seconds)
    price = price_of(hardware, given)
    if price is None:
        return f"Run time so far: {run_s:.0f} s; the price of {hardware} is not known here (give it with --price)."
    source = "by --price" if given is not None else f"as of {AS_OF}"
    cost = run_s * price
    shown = f"${cost:.2f}" if cost >= 0.1 else f"${cost:.4f}"
    return (
        f"Cost so far: about {shown} ({run_s:.0f} s of run time × ${price:.6f}, {hardware}, {source}). "
        "A private model also costs while it starts and stays ready."
    )
