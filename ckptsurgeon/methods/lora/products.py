"""Adds adapters to a tensor in double precision, with results that do not depend on the machine.

BLAS sums in an order that depends on the machine. In double precision its error is so small that nearly all values
round to the same float32. The few values for which the order may matter are summed again, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ...tensors.ops.casts import CastLosses
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array
from .decomposition import multiplied

__all__ = ["Changing", "DoubleProducts", "LowRankChange", "changed", "joined"]

# Changes to the values of a tensor: summed in double precision, in order, and rounded once. No files.

Changing: TypeAlias = Callable[[Array, int], tuple[Array, CastLosses]]
"""A function of rows of the base and the index of the first row.

It returns the changed rows, and the counts of lost values."""


@dataclass(frozen=True)
class LowRankChange:
    """One adapter's change to a matrix, multiplied by ``weight``.

    Factors are in double precision, or in single precision if the results have 16 bits and no factor is rounded.
    ``kind`` is "product" (LoRA), "dora", "saved" (a tensor that replaces the matrix), "added" (a change that is added
    to the matrix) or "rotated" (OFT). ``left`` (rows, rank) is one factor times the scale, ``right`` (rank, columns) is
    the second factor. For "saved" and "added", ``values(begin, end)`` returns rows of the adapter's tensor, or of the
    change of a LoHa or LoKr. For "rotated", ``rotate`` returns rows of the base after an OFT's rotation. ``magnitude``
    is DoRA's vector, which replaces the norms of the rows or, if ``transposed``, of the columns. ``norms`` are the
    norms of the columns; norms of rows are computed when needed. ``is_zero`` is true if the change of a LoHa, LoKr or
    OFT is known to be zero.
    """

    kind: str
    weight: float
    left: Array | None = None
    right: Array | None = None
    transposed: bool = False
    magnitude: Array | None = None
    norms: Array | None = None
    values: Callable[[int, int], Array] | None = None
    rotate: Callable[[Array], Array] | None = None
    is_zero: bool = False

    def pair(self) -> tuple[Array, Array]:
        """Return both factors, left and right, in double precision; the change must be of a kind that has factors."""
        left, right = self.stored_pair()
        return left.astype("<f8", copy=False), right.astype("<f8", copy=False)

    def stored_pair(self) -> tuple[Array, Array]:
        """Return both factors, left and right, in the precision in which they are stored here."""
        assert self.left is not None
        assert self.right is not None
        return self.left, self.right

    def product(self, begin: int, end: int) -> Array:
        """Return the rows from ``begin`` to ``end`` of the product of both factors.

        Each element is summed in order, which is slow, but the same on every machine.
        """
        left, right = self.pair()
        total = np.zeros((end - begin, right.shape[1]))
        part = np.empty_like(total)
        for k in range(len(right)):
            np.multiply(left[begin:end, k : k + 1], right[k], out=part)
            total += part
        return total


def changed(changes: Sequence[LowRankChange], dtype: str, base: Array, begin: int) -> tuple[Array, CastLosses]:
    """Return rows of the base with all changes added in order, as ``dtype``, and the counts of lost values.

    ``base`` has these rows before the changes, from the index ``begin`` on. A value is lost if it is finite in the
    base, and infinite or NaN in the result.
    """
    end = begin + len(base)
    total = base.copy()
    for change in changes:
        total += change.weight * _apart(base, begin, end, change)
    made, lost = rounded(total, "float64", dtype)
    if not np.isfinite(total).all():
        lost += CastLosses(int(np.count_nonzero(np.isfinite(base) & ~np.isfinite(total))))
    return made, lost


def _apart(base: Array, begin: int, end: int, change: LowRankChange) -> Array:
    """Return the values that a change adds to ``base``, the rows of the base from ``begin`` to ``end``."""
    if change.values is not None:
        values: Array = change.values(begin, end)
        return values - base if change.kind == "saved" else values
    if change.rotate is not None:
        return change.rotate(base) - base
    if change.kind == "product":
        return change.product(begin, end)
    adapted = base + change.product(begin, end)
    assert change.magnitude is not None
    if change.transposed:
        assert change.norms is not None
        adapted *= change.magnitude / change.norms
    else:
        norms = np.sqrt(np.add.reduce(adapted * adapted, axis=1))
        adapted *= (change.magnitude[begin:end] / norms)[:, None]
    adapted -= base
    return adapted


FINITE = 2.0**127
"""Sums below this are finite in float32, however they are rounded."""

UNIT = 2.0**-53
"""The largest relative error of the sum of two numbers in double precision."""

PIECE = 1 << 19
"""How many elements are computed at once; with fewer, threads would wait for each other in the interpreter."""

SOME = 1 << 18
"""The largest number of products of two numbers in memory at once, while sums are computed in order."""


def joined(changes: Sequence[LowRankChange]) -> tuple[Array, Array]:
    """Return two factors whose product is the sum of the products of all changes, each times its weight."""
    pairs = [change.pair() for change in changes]
    left = np.hstack([change.weight * left for change, (left, _) in zip(changes, pairs, strict=True)])
    return left, np.vstack([right for _, right in pairs])


class DoubleProducts:
    """Adds products of factors to rows of a float32 base, and rounds the sums to float32.

    ``sizes`` has, for each row, the largest possible magnitude of the sum of the products. ``apart`` has, for each row,
    twice the largest possible rounding error of this sum. For n terms that are rounded and summed, the error is at most
    n + 2 units in the last place of the sum of their magnitudes (Higham 2002, 3.1); a few units are added.
    """

    def __init__(self, changes: Sequence[LowRankChange]) -> None:
        self.left, self.right = joined(changes)
        self.sizes = np.abs(self.left) @ np.abs(self.right).max(axis=1, initial=0.0)
        self.apart = 2 * (len(self.right) + 8) * UNIT * self.sizes

    def changed(self, base: Array, begin: int) -> tuple[Array, CastLosses]:
        """Return ``base`` with the products of the factors added, and the counts of values that became infinite or NaN.

        ``base`` has rows of the base weight, from the index ``begin`` on. The result is float32.
        """
        rows = slice(begin, begin + len(base))
        if not float(self.sizes[rows].max()) + max(float(base.max()), -float(base.min())) < FINITE:
            return self._in_order(base, begin)
        width = max(1, PIECE // len(base))
        if width >= base.shape[1]:
            return self._piece(base, begin, self.right), CastLosses()
        made = np.empty(base.shape, "<f4")
        for first in range(0, base.shape[1], width):
            columns = slice(first, first + width)
            made[:, columns] = self._piece(base[:, columns], begin, self.right[:, columns])
        return made, CastLosses()

    def _piece(self, base: Array, begin: int, right: Array) -> Array:
        """Return ``base`` with the products of the factors added, rounded to single precision.

        ``base`` is a part of the base weight, from row ``begin`` on; ``right`` has the columns of the right factors
        that belong to this part.
        """
        rows = slice(begin, begin + len(base))
        total = multiplied(self.left[rows], right)
        total += base
        made, at = _single(total, self.apart[rows, None])
        if at.size:
            made.reshape(-1)[at] = self._at(base, begin, right, at)
        return made

    def _at(self, base: Array, begin: int, right: Array, at: Array) -> Array:
        """Return the elements of the result of ``_piece`` at the flat indices ``at``.

        The sums are computed again, in order.
        """
        made = []
        for some in np.array_split(at, -(-at.size * len(right) // SOME)):
            rows, columns = np.divmod(some, base.shape[1])
            terms = self.left[begin + rows].T * right[:, columns]
            terms[0] += 0.0  # turns -0 into 0, as if the sum began at zero
            sums = base[rows, columns] + np.add.accumulate(terms, axis=0)[-1]  # ``sum`` may add in pairs
            made.append(sums.astype("<f4"))
        return np.concatenate(made)

    def _in_order(self, base: Array, begin: int) -> tuple[Array, CastLosses]:
        """Return the result of ``changed``, summed in order, for values that are or may become infinite or NaN."""
        return changed([LowRankChange("product", 1.0, self.left, self.right)], "float32", base.astype("<f8"), begin)


def _single(total: Array, apart: Array) -> tuple[Array, Array]:
    """Return the sums ``total`` rounded to float32, and the flat indices of sums whose rounded value is uncertain.

    A sum in order may differ from ``total`` by ``apart`` and a rounding error. The rounded value is uncertain if
    numbers in this range round to different float32 values.
    """
    apart = apart + 8 * UNIT * max(float(total.max()), -float(total.min()))
    low, high = (total - apart).astype("<f4"), (total + apart).astype("<f4")
    return low, np.flatnonzero(low.view("<u4") != high.view("<u4"))
