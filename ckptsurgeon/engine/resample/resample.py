"""Applies linear maps along one axis, computes their weights for resampling, and interpolates linearly.

The bicubic kernel is Keys' kernel with a parameter ``a``, as in torch: a = -0.75 without antialiasing. With
antialiasing, a = -0.5, and the kernel is wider if the output is smaller than the input:
https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cpu/UpSampleKernel.cpp
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, fsum

import numpy as np

from ...tensors.ops.casts import cast
from ...tensors.ops.regions import Array, Box

__all__ = [
    "InterpolationWeights",
    "apply_taps",
    "crossed",
    "dense",
    "from_rows",
    "interpolate",
    "interpolation_box",
    "kept_before",
    "reach_of",
    "resampled",
]

# Linear maps along one axis: each row of the output is a weighted sum of a few rows of the input.


@dataclass(frozen=True, eq=False)
class InterpolationWeights:
    """For each output row, the ``indices`` of the input rows that it uses, and their ``weights``.

    Both arrays have the shape (output rows, k); k is the largest number of input rows that an output row uses.
    """

    indices: Array
    weights: Array


def from_rows(rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> InterpolationWeights:
    """Return the weights given by (indices, weights) of each output row; shorter rows are padded with weights of 0."""
    most = max(len(indices) for indices, _ in rows)
    padded = [[*indices, *[indices[0]] * (most - len(indices))] for indices, _ in rows]
    weights = [[*of, *[0.0] * (most - len(of))] for _, of in rows]
    return InterpolationWeights(np.array(padded, np.int64), np.array(weights, np.float64))


def dense(matrix: Sequence[Sequence[float]]) -> InterpolationWeights:
    """Return the elements of a matrix (output rows, input rows) as interpolation weights."""
    weights = np.array(matrix, np.float64)
    return InterpolationWeights(np.broadcast_to(np.arange(weights.shape[1]), weights.shape), weights)


def crossed(rows: InterpolationWeights, columns: InterpolationWeights, width: int) -> InterpolationWeights:
    """Return the weights that resample a grid, flattened to one axis, from the weights for its rows and its columns.

    ``width`` is the number of columns of the input grid.
    """
    indices = rows.indices[:, None, :, None] * width + columns.indices[None, :, None, :]
    weights = rows.weights[:, None, :, None] * columns.weights[None, :, None, :]
    number = len(rows.indices) * len(columns.indices)
    return InterpolationWeights(indices.reshape(number, -1), weights.reshape(number, -1))


def kept_before(taps: InterpolationWeights, prefix: int) -> InterpolationWeights:
    """Return weights that copy the first ``prefix`` rows unchanged, and resample all later rows with ``taps``."""
    if not prefix:
        return taps
    most = taps.indices.shape[1]
    indices = np.repeat(np.arange(prefix)[:, None], most, axis=1)
    weights = np.zeros((prefix, most))
    weights[:, 0] = 1.0
    return InterpolationWeights(
        np.concatenate([indices, taps.indices + prefix]), np.concatenate([weights, taps.weights])
    )


def reach_of(taps: InterpolationWeights, begin: int, end: int) -> tuple[int, int]:
    """Return (begin, end) of the range of input rows that the output rows ``begin`` to ``end`` need."""
    used = taps.indices[begin:end]
    return (int(used.min()), int(used.max()) + 1) if used.size else (0, 0)


def apply_taps(values: Array, axis: int, taps: InterpolationWeights, *, rows: tuple[int, int], first: int) -> Array:
    """Return the output rows ``rows`` (begin, end) along an axis: weighted sums of the input rows in ``values``.

    ``first`` is the index of the input row with which ``values`` begins.

    Input rows are added in order. So the bits of an output row do not depend on which other rows are computed at the
    same time.
    """
    shape = [1] * values.ndim
    shape[axis] = -1
    indices, weights = taps.indices[slice(*rows)] - first, taps.weights[slice(*rows)]
    out: Array = np.take(values, indices[:, 0], axis=axis) * weights[:, 0].reshape(shape)
    for k in range(1, indices.shape[1]):
        counts = weights[:, k] != 0.0
        if counts.any():
            more = np.take(values, indices[:, k], axis=axis)
            more *= weights[:, k].reshape(shape)
            np.add(out, more, out=out, where=counts.reshape(shape))
    return out


Row = tuple[Sequence[int], Sequence[float]]


def resampled(have: int, want: int, method: str, *, antialias: bool) -> InterpolationWeights:
    """Return the weights that resample an axis of length ``have`` to ``want``, by "bilinear" or "bicubic"."""
    if have == want:
        return from_rows([((place,), (1.0,)) for place in range(want)])
    row = _widened if antialias else _plain
    return from_rows([row(place, have, have / want, method) for place in range(want)])


def _plain(place: int, have: int, scale: float, method: str) -> Row:
    """Return the indices of the inputs nearest to the output ``place``, and their weights.

    There are two inputs for "bilinear", four for "bicubic". Beyond the ends of the axis, the first or the last input is
    used. ``have`` is the number of inputs, ``scale`` the number of inputs for each output.
    """
    centre = (place + 0.5) * scale - 0.5
    if method == "bilinear":
        centre = max(centre, 0.0)
        low = min(int(centre), have - 1)
        return (low, min(low + 1, have - 1)), (1 - (centre - low), centre - low)
    low = floor(centre)
    indices = [min(max(low + k, 0), have - 1) for k in (-1, 0, 1, 2)]
    return indices, [_cubic(centre - (low + k), -0.75) for k in (-1, 0, 1, 2)]


def _widened(place: int, have: int, scale: float, method: str) -> Row:
    """Return the indices of all inputs under the antialiasing kernel of the output at ``place``, and their weights.

    The kernel is wider if the output is smaller than the input. ``have`` is the number of inputs, ``scale`` the number
    of inputs for each output.
    """
    kernel, radius = _KERNELS[method]
    wide = max(scale, 1.0)
    centre = (place + 0.5) * scale
    begin = max(int(centre - radius * wide + 0.5), 0)
    end = min(int(centre + radius * wide + 0.5), have)
    weights = [kernel((index - centre + 0.5) / wide) for index in range(begin, end)]
    total = fsum(weights)
    return range(begin, end), [weight / total for weight in weights]


def _cubic(x: float, a: float) -> float:
    """Return the value of Keys' cubic convolution kernel at the distance ``x`` (IEEE Trans. ASSP 29, 1981)."""
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
"""{method: (kernel for antialiasing, radius of the kernel before it is widened)}."""


# Linear (bilinear) interpolation, part by part.


def _source_positions(begin: int, end: int, source: int, destination: int) -> Array:
    """Return, for each output from ``begin`` to ``end``, its position among the inputs (``align_corners=False``).

    ``source`` and ``destination`` are the lengths of the axis. The positions are float64. In float32, which torch uses
    for float32 values, the weights of the 500th row would have an error of 1e-4.
    """
    centres = (np.arange(begin, end, dtype=np.float64) + 0.5) * (source / destination)
    positions: Array = np.maximum(centres - 0.5, 0)
    return positions


def interpolation_box(box: Box, source: Sequence[int], destination: Sequence[int]) -> Box:
    """Return the part of the source that the part ``box`` of the interpolated tensor needs."""
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
    """Return the part ``box`` of a tensor that is interpolated linearly from the shape ``source`` to ``destination``.

    ``array`` has the values of the region ``part`` of the source, of the dtype ``dtype``. The result is computed in
    float32, or in float64 for float64 values, as ``torch.nn.functional.interpolate`` does with ``align_corners=False``:
    the last dimension first.
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
