"""The sum of values and the sum of their squares: of all values of a block, or estimated from a part of them.

Standard deviations and means are compared within factors of eight and more. So one of 64 values of a large tensor
suffices, and saves most of the conversion to float32. The sample has at least 128 runs of ``RUN`` neighbouring bytes.
It also shows how many values are denormal, in dtypes in which that is usual. Extremes and counts of NaN, infinities and
positive zeros are never estimated: a single NaN, or a page of zeros among weights, is a fault.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ....tensors.ops.regions import Array

__all__ = ["ROW", "SHARE", "runs_of", "scaled_up", "whole_sums"]

ROW = 4096
"""This many squares are added in single precision; the sums are then added in double precision."""
FEW_ROWS = 2
"""Up to this many rows are multiplied one by one, because that is faster."""
RUN = 512
"""The size in bytes of a run: neighbouring bytes of a block. A sample consists of whole runs."""
SHARE = 64
"""A sample takes one run from each group of this many neighbouring runs."""
FAR = 32.0
"""If the largest magnitude is over this many times the root mean square of a sample, all values are added.

A few large values may make up most of the sum of squares, even if the sample contains none of them. A single value that
is 32 times as large as the others of a block changes the standard deviation of the block by at most 0.4 %, and the
estimate by a fifth if the value is in the sample. The estimate for the whole tensor changes by a fortieth at most.
"""


def runs_of(raw: Array, number: int, out: Array) -> Array:
    """Return a sample of a block's bytes, in ``out``: of each 64 neighbouring runs of ``RUN`` bytes, one run.

    ``number`` is the number of the block. The position of the run in its group differs from group to group and from
    block to block, because equal positions might always be the same columns of a matrix.
    """
    runs = raw.reshape(-1, RUN)
    places = _places(len(runs) // SHARE, number % 512)
    taken: Array = np.take(runs, places, axis=0, out=out[: places.size * RUN].reshape(-1, RUN), mode="clip")
    return taken.reshape(-1)


@lru_cache(512)
def _places(groups: int, number: int) -> Array:
    """Return, for each group of ``SHARE`` neighbouring runs of a block, the index of the run that is sampled."""
    group = np.arange(groups)
    found: Array = group * SHARE + ((group + 57 * number) * 40503 % 65521 >> 5) % SHARE  # as good as random, repeatable
    return found


def scaled_up(sums: tuple[float, float], taken: int, number: int, largest: float) -> tuple[float, float] | None:
    """Return estimates of the sum of ``number`` values and the sum of their squares, from a sample of the values.

    ``sums`` are the two sums over the sample, which has ``taken`` values. ``largest`` is the largest magnitude of all
    values. Returns None if it is so large that the estimates may be wrong (see ``FAR``), or if the sums overflow.
    """
    total, squares = sums
    if not math.isfinite(squares) or largest * largest * taken > FAR * FAR * squares:
        return None
    return total * number / taken, squares * number / taken


def whole_sums(values: Array, ones: Array) -> tuple[float, float]:
    """Return the sum of the values and the sum of their squares; in double precision if single precision overflows.

    ``ones`` is a row of ``ROW`` ones.
    """
    if values.dtype == np.float32:
        whole = values.size // ROW * ROW
        total, squares = _of_rows(values[:whole].reshape(-1, ROW), ones)
        if whole < values.size:
            more, rest = _of_rows(values[whole:].reshape(1, -1), ones[: values.size - whole])
            total, squares = total + more, squares + rest
        if math.isfinite(squares):
            return total, squares
    wide = values.astype(np.float64)
    return float(wide.sum()), float(np.square(wide).sum())


def _of_rows(rows: Array, ones: Array) -> tuple[float, float]:
    """Return, for a matrix ``rows``, the sum of all values and of their squares; ``ones`` is a row of ones.

    The sums are computed as products of single rows, because BLAS starts threads for larger matrices.
    """
    if len(rows) <= FEW_ROWS:
        return sum(float(np.dot(row, ones)) for row in rows), sum(float(np.dot(row, row)) for row in rows)
    squares = np.matmul(rows[:, None, :], rows[:, :, None])
    totals = np.matmul(rows[:, None, :], ones[:, None])
    return float(totals.sum(dtype=np.float64)), float(squares.sum(dtype=np.float64))
