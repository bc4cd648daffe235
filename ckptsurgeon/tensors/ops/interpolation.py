"""Linear (bilinear) interpolation, a part at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .boxes import Array, Box
from .casts import cast

__all__ = ["interpolate", "interpolation_box"]


def _source_positions(begin: int, end: int, source: int, destination: int) -> Array:
    """Return where in the source the output positions lie (``align_corners=False``).

    In float64: in float32, as torch has them for float32 values, the weights of the 500th row are off by 1e-4.
    """
    centres = (np.arange(begin, end, dtype=np.float64) + 0.5) * (source / destination)
    positions: Array = np.maximum(centres - 0.5, 0)
    return positions


def interpolation_box(box: Box, source: Sequence[int], destination: Sequence[int]) -> Box:
    """Return the part of the source that a part of the interpolated tensor is made from."""
    ranges = []
    for (begin, end), have, want in zip(box, source, destination, strict=True):
        if have == want:
            ranges.append((begin, end))
            continue
        positions = _source_positions(begin, end, have, want)
        low, high = int(positions[0]), int(positions[-1])
        ranges.append((min(low, have - 1), min(high + 2, have)))
    return tuple(ranges)


def interpolate(
    array: Array, part: Box, box: Box, source: Sequence[int], destination: Sequence[int], *, dtype: str
) -> Array:
    """Return ``box`` of the linear (bilinear) interpolation of a tensor, from its ``part``, as floats.

    Computed in float32, and in float64 for float64 values, as ``torch.nn.functional.interpolate`` does with
    ``align_corners=False``: the last dimension first.
    """
    values, _ = cast(array, dtype, "float64" if dtype == "float64" else "float32")
    for axis in reversed(range(len(source))):
        have, want = source[axis], destination[axis]
        if have == want:
            continue
        positions = _source_positions(*box[axis], have, want)
        low = np.minimum(positions.astype(np.int64), have - 1)
        high = np.minimum(low + 1, have - 1)
        shape = [1] * values.ndim
        shape[axis] = -1
        weight = (positions - low).astype(values.dtype).reshape(shape)
        first = np.take(values, low - part[axis][0], axis=axis)
        second = np.take(values, high - part[axis][0], axis=axis)
        values = first * (1 - weight) + second * weight
    return values
