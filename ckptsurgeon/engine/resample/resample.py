"""The weights with which an axis is resampled: linear or cubic, ``align_corners=False``, as torch has them.

Without antialiasing the cubic kernel is Keys' with a = -0.75, with it a = -0.5 and widened where it shrinks:
https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cpu/UpSampleKernel.cpp
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import floor, fsum

from .taps import Taps, from_rows

__all__ = ["resampled"]

Row = tuple[Sequence[int], Sequence[float]]


def resampled(have: int, want: int, method: str, *, antialias: bool) -> Taps:
    """Return the taps of ``want`` places along an axis that has ``have``; ``method`` is "bilinear" or "bicubic"."""
    if have == want:
        return from_rows([((place,), (1.0,)) for place in range(want)])
    row = _widened if antialias else _plain
    return from_rows([row(place, have, have / want, method) for place in range(want)])


def _plain(place: int, have: int, scale: float, method: str) -> Row:
    """Return the two or four neighbours of a place; beyond the edge, the edge counts."""
    centre = (place + 0.5) * scale - 0.5
    if method == "bilinear":
        centre = max(centre, 0.0)
        low = min(int(centre), have - 1)
        return (low, min(low + 1, have - 1)), (1 - (centre - low), centre - low)
    low = floor(centre)
    indices = [min(max(low + k, 0), have - 1) for k in (-1, 0, 1, 2)]
    return indices, [_cubic(centre - (low + k), -0.75) for k in (-1, 0, 1, 2)]


def _widened(place: int, have: int, scale: float, method: str) -> Row:
    """Return all that a kernel reaches which is as wide as a place of the output."""
    kernel, radius = _KERNELS[method]
    wide = max(scale, 1.0)
    centre = (place + 0.5) * scale
    begin = max(int(centre - radius * wide + 0.5), 0)
    end = min(int(centre + radius * wide + 0.5), have)
    weights = [kernel((index - centre + 0.5) / wide) for index in range(begin, end)]
    total = fsum(weights)
    return range(begin, end), [weight / total for weight in weights]


def _cubic(x: float, a: float) -> float:
    """Return Keys' cubic convolution kernel at a distance (IEEE Trans. ASSP 29, 1981)."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _linear(x: float) -> float:
    return max(1 - abs(x), 0.0)


_KERNELS: Mapping[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_linear, 1.0),
    "bicubic": (lambda x: _cubic(x, -0.5), 2.0),
}
