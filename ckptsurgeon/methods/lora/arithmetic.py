"""What adapters do to the values of a tensor: summed in double precision, in order, and rounded once. No files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ...tensors.ops.boxes import Array
from ...tensors.ops.casts import Lost
from ...tensors.ops.means import rounded

__all__ = ["Change", "Changing", "changed"]

Changing: TypeAlias = Callable[[Array, int], tuple[Array, Lost]]
"""Given rows of the base and the number of the first: the rows changed, and how many lost their size."""


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


def changed(changes: Sequence[Change], dtype: str, base: Array, begin: int) -> tuple[Array, Lost]:
    """Return rows of a tensor, from ``begin`` on, with all changes, every element summed in order.

    With it comes how many values became infinite or NaN that are finite in the base.
    """
    end = begin + len(base)
    total = base.copy()
    for change in changes:
        total += change.weight * _apart(base, begin, end, change)
    made, lost = rounded(total, "float64", dtype)
    if not np.isfinite(total).all():
        lost += Lost(int(np.count_nonzero(np.isfinite(base) & ~np.isfinite(total))))
    return made, lost


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
