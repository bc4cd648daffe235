"""What the values of tensors are like, as columns of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .table import Places

if TYPE_CHECKING:
    from ..inspect.stats import Stats

__all__ = ["exact", "figure", "figures_of"]

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Heights of a histogram, one character for each bin: the highest is the last."""

COUNTS = ("zeros", "nan", "inf")


def figures_of(
    stats: Mapping[str, Stats | None], histograms: Mapping[str, Sequence[int]], places: Places
) -> dict[str, Any]:
    """Return a column for each figure; None, or nothing, where a tensor has none."""
    found = [stats.get(key) for key in places]
    numbers: dict[str, list[float | None]] = {
        name: [None if one is None else figure(getattr(one, name)) for one in found] for name in ("mean", "std")
    }
    numbers |= {name: [None if one is None else exact(getattr(one, name)) for one in found] for name in ("min", "max")}
    counts = {name: [one and getattr(one, name) for one in found] for name in COUNTS}
    return {**numbers, **counts, "histogram": [_heights(histograms.get(key, ())) for key in places]}


def figure(value: float | None) -> float | None:
    """Return a number with the six digits that a page shows; None for what is not finite, which JSON has not."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def exact(value: float | None) -> float | None:
    """Return a number with the nine digits that tell any two of float32 apart; an integer with all of them."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1 << 53 else float(f"{value:.9g}")


def _heights(counts: Sequence[int]) -> str:
    """Return the heights of bins: one where anything is in it at all, however little beside the highest."""
    top = max(counts, default=0)
    last = len(DIGITS) - 1
    return "".join(DIGITS[-(-number * last // top)] for number in counts) if top else ""
