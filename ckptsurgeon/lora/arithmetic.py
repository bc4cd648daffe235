"""What adapters do to the values of a tensor, in double precision and rounded once. numpy, no files.

The products are the work of whatever BLAS there is, whose last bits depend on the machine. Where they could decide how
a value is rounded it is summed again, in an order of our own: so the same inputs give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..means import rounded
from ..ops import Array

__all__ = ["Change", "changed"]

UNCERTAIN = 2.0**-49
"""Times the terms of a sum and their size: more than two ways of adding up doubles can be apart."""

TIES = {"bfloat16": (0xFFFF, 0x8000), "float16": (0x1FFF, 0x1000)}
"""What lies halfway between two values of a type has these of the last bits of a float32."""

ALONE = 1 << 17
"""Multiplications that OpenBLAS does in one thread; waiting for each other took two six times as long."""

SUBNORMAL = 2.0**-13
"""Below it, values of float16 may lie closer to each other."""


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

    def product(self, begin: int, end: int) -> Array:
        """Return rows of left times right, each element summed in order: slow, and the same on every machine."""
        assert self.left is not None
        assert self.right is not None
        total = np.zeros((end - begin, self.right.shape[1]))
        part = np.empty_like(total)
        for k in range(self.right.shape[0]):
            np.multiply(self.left[begin:end, k : k + 1], self.right[k], out=part)
            total += part
        return total


def changed(base: Array, begin: int, changes: Sequence[Change], dtype: str) -> tuple[Array, int]:
    """Return rows of a tensor, from ``begin`` on, with all changes, as ``dtype``, and how many values became infinite.

    ``base`` is (rows, columns) in double precision; it is not kept. All changes are of the same base.
    """
    end = begin + len(base)
    total = base.copy()
    for change in changes:
        if change.kind != "product":
            total += change.weight * _apart(base, begin, end, change)
    products = [change for change in changes if change.kind == "product"]
    if dtype == "float64":
        for change in products:
            total += change.weight * change.product(begin, end)
    elif products:
        total = _added(total, begin, products, dtype)
    return rounded(total, "float64", dtype)


def _apart(base: Array, begin: int, end: int, change: Change) -> Array:
    """Return what a change that is no plain product adds to its base."""
    if change.values is not None:
        values: Array = change.values(begin, end)
        return values - base if change.kind == "saved" else values
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


def _added(base: Array, begin: int, products: Sequence[Change], dtype: str) -> Array:
    """Return ``base`` and the products; what could be rounded either way is summed in order."""
    pairs = [_pair(change, begin, begin + len(base)) for change in products]
    left, right = pairs[0] if len(pairs) == 1 else (np.hstack([p[0] for p in pairs]), np.vstack([p[1] for p in pairs]))
    if not left.any():
        return base
    total = _multiplied(left, right)
    total += base
    size = _largest(base) + float(np.abs(left).sum(axis=1).max(initial=0.0)) * _largest(right)
    apart = UNCERTAIN * (left.shape[1] + 2) * size
    at = np.flatnonzero(_uncertain(total, apart, dtype))
    for some in _pieces(at):
        rows, columns = np.divmod(some, base.shape[1])
        sums = base[rows, columns]
        for k in range(left.shape[1]):
            sums += left[rows, k] * right[k, columns]
        total.reshape(-1)[some] = sums
    return total


def _multiplied(left: Array, right: Array) -> Array:
    """Return the product, in parts that BLAS does not spread over threads: there are threads enough around it."""
    total = np.empty((len(left), right.shape[1]))
    rows = min(len(left), 64)
    columns = max(8, ALONE // (rows * len(right)))
    for top in range(0, len(left), rows):
        for begin in range(0, right.shape[1], columns):
            part = right[:, begin : begin + columns]
            np.matmul(left[top : top + rows], part, out=total[top : top + rows, begin : begin + columns])
    return total


def _pair(change: Change, begin: int, end: int) -> tuple[Array, Array]:
    assert change.left is not None
    assert change.right is not None
    return change.weight * change.left[begin:end], change.right


def _largest(values: Array) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _uncertain(total: Array, apart: float, dtype: str) -> Array:
    """Return where values that are ``apart`` or less from these could be rounded otherwise."""
    low, high = (total - apart).astype("<f4"), (total + apart).astype("<f4")
    unsure: Array = low != high
    if dtype != "float32":
        mask, halfway = TIES.get(dtype, (0xFFF, 0))
        unsure |= low.view("<u4") & np.uint32(mask) == halfway
    if dtype == "float16":
        unsure |= np.abs(low) < SUBNORMAL
    return unsure


def _pieces(at: Array, size: int = 1 << 14) -> Iterator[Array]:
    return (at[begin : begin + size] for begin in range(0, len(at), size))
