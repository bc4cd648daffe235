"""What adapters do to the values of a tensor: summed in double precision, in order, and rounded once. No files.

Plain products are the work of whatever BLAS there is, in single precision where that is far more than the output has.
Where what this may be off could decide how a value is rounded, it is summed as said: so the bytes are the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..means import rounded
from ..ops import Array

__all__ = ["Change", "Changing", "changing", "wide_dtype"]

WIDE = {"float32": "float64", "bfloat16": "float32", "float16": "float32"}
"""What products are computed in for an output whose rounding can then be checked."""

ALONE = 1 << 17
"""Multiplications that OpenBLAS does in one thread; waiting for each other took two six times as long."""

FINITE = {"bfloat16": 2.0**127, "float16": 2.0**15, "float32": 2.0**127}
"""Sums below it are finite in a type, however they are rounded."""

SOME = 1 << 13
"""Elements that are summed in order at once."""

Changing: TypeAlias = Callable[[Array, int], tuple[Array, int]]
"""Given rows of the base and the number of the first: the rows changed, and how many values became infinite."""


@dataclass(frozen=True)
class Change:
    """One adapter's change of a tensor of rows and columns, as ``plan.Term`` says; the scale is in ``left`` already.

    ``left`` is (rows, rank), ``right`` (rank, columns); for a "saved" or "added" tensor ``values`` gives a part of it.
    ``magnitude`` is that of DoRA, ``norms`` what it is divided by, each for a row or, if ``transposed``, for a column.
    """

    kind: str
    weight: float
    left: Array | None = None
    right: Array | None = None
    transposed: bool = False
    magnitude: Array | None = None
    norms: Array | None = None
    values: Callable[[int, int], Array] | None = None

    def pair(self) -> tuple[Array, Array]:
        """Return the factors; there are some."""
        assert self.left is not None
        assert self.right is not None
        return self.left, self.right

    def product(self, begin: int, end: int) -> Array:
        """Return rows of left times right, each element summed in order: slow, and the same on every machine."""
        left, right = self.pair()
        total = np.zeros((end - begin, right.shape[1]))
        part = np.empty_like(total)
        for k in range(len(right)):
            np.multiply(left[begin:end, k : k + 1], right[k], out=part)
            total += part
        return total


def wide_dtype(base: str, changes: Sequence[Change], dtype: str) -> str:
    """Return the dtype in which ``changing`` wants the rows of a base of a dtype, for an output of another."""
    plain = all(change.kind == "product" for change in changes)
    return WIDE.get(dtype, "float64") if plain and base != "float64" else "float64"


def changing(changes: Sequence[Change], wide: str, dtype: str) -> Changing:
    """Return what changes rows of a base, which are of dtype ``wide``, and rounds them to ``dtype``.

    All changes are of the same base.
    """
    if all(change.kind == "product" for change in changes) and WIDE.get(dtype) == wide:
        return _Products(changes, dtype).changed
    return lambda base, begin: _changed(changes, dtype, base, begin)


def _changed(changes: Sequence[Change], dtype: str, base: Array, begin: int) -> tuple[Array, int]:
    """Return rows of a tensor, from ``begin`` on, with all changes, every element summed in order."""
    end = begin + len(base)
    total = base.copy()
    for change in changes:
        total += change.weight * _apart(base, begin, end, change)
    return rounded(total, "float64", dtype)


def _apart(base: Array, begin: int, end: int, change: Change) -> Array:
    """Return what a change adds to its base."""
    if change.values is not None:
        values: Array = change.values(begin, end)
        return values - base if change.kind == "saved" else values
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


class _Products:
    """Plain products that are added to rows of a base.

    ``sizes`` is what a row of the products is at most, ``apart`` twice what it may be off: of n terms that are rounded
    and summed, n + 2 units in the last place of the sum of their sizes (Higham 2002, 3.1). Adding the base, and what is
    held against the rounding, are a few more.
    """

    def __init__(self, changes: Sequence[Change], dtype: str) -> None:
        pairs = [change.pair() for change in changes]
        weighted = [change.weight * left for change, (left, _) in zip(changes, pairs, strict=True)]
        self.dtype = dtype
        self.left = np.ascontiguousarray(np.hstack(weighted))
        right = np.vstack([right for _, right in pairs])
        self.columns = np.ascontiguousarray(right.T)
        wide = np.dtype(WIDE[dtype])
        self.fast = self.left.astype(wide), right.astype(wide)
        self.sizes = np.abs(self.left) @ np.abs(right).max(axis=1, initial=0.0)
        self.terms = len(right)
        self.unit = float(np.finfo(wide).eps) / 2
        self.apart = 2 * (self.terms + 8) * self.unit * self.sizes

    def changed(self, base: Array, begin: int) -> tuple[Array, int]:
        """Return rows of the base with the products, and how many values became infinite."""
        rows = slice(begin, begin + len(base))
        sizes = self.sizes[rows] + max(float(base.max()), -float(base.min()))
        if not float(sizes.max()) < FINITE[self.dtype]:
            return self._in_order(base, begin)
        left, right = self.fast
        total = _multiplied(left[rows], right)
        total += base
        apart = (self.apart[rows] + 8 * self.unit * sizes)[:, None].astype(total.dtype)
        low, high = _narrow(total - apart, self.dtype), _narrow(total + apart, self.dtype)
        at = np.flatnonzero(low != high)
        if at.size:
            low.reshape(-1)[at] = self._at(base, begin, at)
        return low, 0

    def _at(self, base: Array, begin: int, at: Array) -> Array:
        """Return single elements of the output, by their numbers in the block."""
        made = np.empty(at.size, _narrow(np.empty(0, "<f4"), self.dtype).dtype)
        for first in range(0, at.size, SOME):
            some = at[first : first + SOME]
            rows, columns = np.divmod(some, base.shape[1])
            sums = base[rows, columns].astype("<f8")
            left, right = self.left[begin + rows], self.columns[columns]
            for k in range(self.terms):
                sums += left[:, k] * right[:, k]
            made[first : first + SOME] = _bits(rounded(sums, "float64", self.dtype)[0])
        return made

    def _in_order(self, base: Array, begin: int) -> tuple[Array, int]:
        """Return what ``changed`` does where values are not finite, or may not stay so."""
        change = Change("product", 1.0, self.left, np.ascontiguousarray(self.columns.T))
        values, lost = _changed([change], self.dtype, base.astype("<f8"), begin)
        return _bits(values), lost


def _multiplied(left: Array, right: Array) -> Array:
    """Return the product, in parts that BLAS does not spread over threads: there are threads enough around it."""
    total = np.empty((len(left), right.shape[1]), left.dtype)
    rows = min(len(left), 64)
    columns = max(8, ALONE // (rows * len(right)))
    for top in range(0, len(left), rows):
        for begin in range(0, right.shape[1], columns):
            part = right[:, begin : begin + columns]
            np.matmul(left[top : top + rows], part, out=total[top : top + rows, begin : begin + columns])
    return total


def _narrow(values: Array, dtype: str) -> Array:
    """Return finite values, rounded, as integers of the output's size; what lies halfway goes either way."""
    if dtype == "bfloat16":
        bits = values.view("<u4")
        bits += np.uint32(0x8000)
        return (bits >> np.uint32(16)).astype("<u2")
    return _bits(values.astype({"float16": "<f2", "float32": "<f4"}[dtype]))


def _bits(values: Array) -> Array:
    return np.ascontiguousarray(values).view(f"<u{values.itemsize}")
