"""Adds products of factors to a tensor in single precision, for results of 16 bits; the error is bounded.

Let S be the sum of the magnitudes of r products and of one value of the base. The error of their sum is at most (r + 4)
2**-24 S, because factors are rounded, and terms are summed in any order (Higham 2002, 3.1); underflow adds at most r
2**-86. Then the sum is rounded to 16 bits. So the result is usually the exact sum, rounded. If the exact sum is closer
than this error to the midpoint between two 16-bit numbers, the result may be either of these numbers. The error is more
than one unit in the last place only if terms cancel: in bfloat16, if the magnitude of the sum is less than (r + 4)
2**-16 S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...tensors.ops.casts import CACHED, CastLosses, bfloat16_sums, cast, count_special, raw_dtype, widened
from ...tensors.ops.regions import Array
from .decomposition import multiplied
from .products import LowRankChange, changed, joined

__all__ = ["TILE", "SingleProducts"]

LARGE = 2.0**62
"""If a factor contains a number larger than this, products are summed in double precision, in order.

In single precision they would be too inexact, or overflow."""

EVEN, PADDING = 256, 16
"""Products whose number of columns is a multiple of ``EVEN`` get ``PADDING`` more columns while they are computed."""

TILE = 1 << 19
"""A product is computed in blocks of rows with at most this many elements, or of one row.

The order in which BLAS adds depends on the size of the blocks."""


class SingleProducts:
    """Adds products of factors to rows of a base, and rounds them to ``dtype``, a float of 16 bits.

    ``base_dtype`` is the dtype of the base, whose values have the type that ``raw_dtype`` returns. BLAS multiplies
    blocks of whole rows. The blocks always begin at the same rows, so that the result for a row does not depend on
    which other rows are requested. Rows with infinite values or NaN are computed in double precision, in order.
    """

    def __init__(self, changes: Sequence[LowRankChange], dtype: str, base_dtype: str = "float32") -> None:
        self._dtype, self._base_dtype = dtype, base_dtype
        is_alone = len(changes) == 1 and changes[0].weight == 1.0
        self._left, self._right = changes[0].stored_pair() if is_alone else joined(changes)
        ends = (end for one in (self._left, self._right) for end in (one.max(initial=0.0), -one.min(initial=0.0)))
        self._is_plain = all(end < LARGE for end in ends)  # false for NaN
        if self._is_plain:
            self._factors = self._left.astype("<f4", copy=False), _padded(self._right)

    def changed(self, base: Array, begin: int) -> tuple[Array, CastLosses]:
        """Return ``base`` with the products of the factors added, and the counts of values that became infinite or NaN.

        ``base`` has rows of the base weight, from the index ``begin`` on.
        """
        if not self._is_plain:
            return self._in_order(base, np.arange(begin, begin + len(base)))
        made = self._sums(base, begin)
        if not any(count_special(made, self._dtype)):
            return made, CastLosses(are_finite=True)
        rows = np.flatnonzero(~np.isfinite(widened(made, self._dtype)).all(axis=1))
        made[rows], lost = self._in_order(base[rows], begin + rows)
        return made, lost

    def _sums(self, base: Array, begin: int) -> Array:
        """Return ``base`` with the products of the factors added, rounded; sums that are too large are infinite."""
        total = self._product(begin, begin + len(base))
        if self._dtype == self._base_dtype == "bfloat16":
            return bfloat16_sums(base, total)  # rows with NaN are computed again, so the bits of a NaN do not matter
        made = np.empty(base.shape, raw_dtype(self._dtype))
        size = max(1, CACHED // base.shape[1])
        for top in range(0, len(base), size):
            wide = self._wide(base[top : top + size])
            sums = np.add(wide, total[top : top + size], out=None if self._base_dtype == "float32" else wide)
            made[top : top + size] = cast(sums, "float32", self._dtype)[0]
        return made

    def _wide(self, base: Array) -> Array:
        """Return rows of the base in single precision."""
        return cast(base, self._base_dtype, "float32")[0]

    def _product(self, begin: int, end: int) -> Array:
        """Return the rows from ``begin`` to ``end`` of the product of both factors."""
        left, right = self._factors
        size = max(1, TILE // self._right.shape[1])
        first = begin // size * size
        tiles = [multiplied(left[top : top + size], right) for top in range(first, end, size)]
        whole = tiles[0] if len(tiles) == 1 else np.concatenate(tiles)
        return whole[begin - first : end - first, : self._right.shape[1]]

    def _in_order(self, base: Array, rows: Array) -> tuple[Array, CastLosses]:
        """Return rows of the base with the products of the factors added, summed in order in double precision.

        ``rows`` are the indices of the rows, ``base`` has their values in the base.
        """
        change = LowRankChange("product", 1.0, self._left[rows], self._right)
        return changed([change], self._dtype, self._wide(base).astype("<f8"), 0)


def _padded(right: Array) -> Array:
    """Return a factor in single precision, with columns of zeros if its rows are a multiple of 1 KiB.

    Then the rows of the product begin at different places in the cache: BLAS takes a quarter of the time for rank 8.
    """
    rows, columns = right.shape
    if columns % EVEN:
        return right.astype("<f4", copy=False)
    made = np.zeros((rows, columns + PADDING), "<f4")
    made[:, :columns] = right
    return made
