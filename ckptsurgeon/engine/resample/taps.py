"""Linear maps along one axis: each row of the output is a weighted sum of a few rows of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...tensors.ops.boxes import Array

__all__ = ["Taps", "apply_taps", "crossed", "dense", "from_rows", "kept_before", "reach_of"]


@dataclass(frozen=True, eq=False)
class Taps:
    """For each row of the output: the rows of the input that count (out, k), and how much each does (out, k)."""

    indices: Array
    weights: Array


def from_rows(rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Taps:
    """Return the taps of rows of unequal length; the shorter ones count their first input with a weight of 0."""
    most = max(len(indices) for indices, _ in rows)
    padded = [[*indices, *[indices[0]] * (most - len(indices))] for indices, _ in rows]
    weights = [[*of, *[0.0] * (most - len(of))] for _, of in rows]
    return Taps(np.array(padded, np.int64), np.array(weights, np.float64))


def dense(matrix: Sequence[Sequence[float]]) -> Taps:
    """Return a matrix (out, in) as taps."""
    weights = np.array(matrix, np.float64)
    return Taps(np.broadcast_to(np.arange(weights.shape[1]), weights.shape), weights)


def crossed(rows: Taps, columns: Taps, width: int) -> Taps:
    """Return the taps of a grid whose rows follow each other, ``width`` columns wide, from those of its two axes."""
    indices = rows.indices[:, None, :, None] * width + columns.indices[None, :, None, :]
    weights = rows.weights[:, None, :, None] * columns.weights[None, :, None, :]
    number = len(rows.indices) * len(columns.indices)
    return Taps(indices.reshape(number, -1), weights.reshape(number, -1))


def kept_before(taps: Taps, prefix: int) -> Taps:
    """Return taps behind ``prefix`` rows that stay as they are."""
    if not prefix:
        return taps
    most = taps.indices.shape[1]
    indices = np.repeat(np.arange(prefix)[:, None], most, axis=1)
    weights = np.zeros((prefix, most))
    weights[:, 0] = 1.0
    return Taps(np.concatenate([indices, taps.indices + prefix]), np.concatenate([weights, taps.weights]))


def reach_of(taps: Taps, begin: int, end: int) -> tuple[int, int]:
    """Return the range of input rows that the output rows ``begin`` to ``end`` are made from."""
    used = taps.indices[begin:end]
    return (int(used.min()), int(used.max()) + 1) if used.size else (0, 0)


def apply_taps(values: Array, axis: int, taps: Taps, *, rows: tuple[int, int], first: int) -> Array:
    """Return the output ``rows`` (begin, end) along an axis, from values whose first row there is ``first``.

    One input row after the other, so that a row is the same whatever it is computed together with.
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
