"""Measures the errors of weights whose changes a patch approximates."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from ...tensors.ops.casts import raw_dtype, widened
from .blocks import Bytes

__all__ = ["Errors", "errors_of"]


class Errors(NamedTuple):
    """Sums of squares over some elements: of the errors, of the changes, and of the new weights."""

    missing: float
    change: float
    weight: float

    @staticmethod
    def between(old: Bytes, new: Bytes, made: Bytes, dtype: str) -> Errors:
        """Return the sums of squares for one block of elements of ``dtype``; not finite if an element is not finite.

        ``old`` and ``new`` are the exact bytes of the block in both checkpoints. ``made`` are the bytes that the patch
        makes: they approximate ``new``.
        """
        before, after, found = (widened(one.view(raw_dtype(dtype)), dtype) for one in (old, new, made))
        with np.errstate(all="ignore"):
            return Errors(_squares(found - after), _squares(after - before), _squares(after))

    def plus(self, other: Errors | None) -> Errors:
        """Return the sum of this object and ``other``: the sums over the elements of both; None counts as zero."""
        return self if other is None else Errors(*(one + two for one, two in zip(self, other, strict=True)))


def _squares(values: np.typing.NDArray[np.float32]) -> float:
    return float(np.einsum("i,i->", values, values, dtype="<f8"))


def errors_of(tensors: Sequence[Errors]) -> tuple[float, ...]:
    """Return the relative error of all changes together, and the largest relative error of the weights of a tensor.

    Returns () if there are no tensors.
    """
    if not tensors:
        return ()
    missing, change = sum(one.missing for one in tensors), sum(one.change for one in tensors)
    of_weights = max((sqrt(one.missing / one.weight) for one in tensors if one.weight), default=0.0)
    return sqrt(missing / change) if change else 0.0, of_weights
