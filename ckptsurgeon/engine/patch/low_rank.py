"""Approximates the change of a matrix by the product of two low-rank factors, with the same bits on every machine.

A BLAS adds the terms of a product in an order that depends on the processor, but the SHA-256 of the new file must not
depend on it. So both factors are rounded to multiples of a power of two, with so few bits that float64 represents every
sum of products exactly: then the order has no effect. There are 24 bits, as in a float32, up to rank 32, and 22 at rank
512.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np

from ...methods.lora.decomposition import Rows, alone, decompose, elements_held, multiplied
from ...tensors.ops.casts import widened
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array

__all__ = [
    "Factors",
    "RightFactor",
    "add_product",
    "bits_of",
    "factors_of",
    "fits_in_memory",
    "rounded_factor",
    "rows_of",
]

MOST_BYTES = 1 << 30
"""How many bytes the decomposition of one matrix may take; a matrix that needs more is stored exactly."""
PART = 1 << 18
"""How many elements of a product are computed at once."""


@dataclass(frozen=True)
class Factors:
    """Two float32 factors of a change: ``left`` (rows, rank) and ``right`` (rank, columns).

    ``square`` is the squared Frobenius norm of the change.
    """

    left: Array
    right: Array
    square: float


class RightFactor(NamedTuple):
    """The right factor (rank, columns) of the change of a matrix of ``dtype``."""

    values: Array
    dtype: str


def fits_in_memory(shape: tuple[int, int], rank: int) -> bool:
    """Return whether the decomposition of a matrix of this ``shape`` takes at most ``MOST_BYTES`` bytes of memory."""
    return 8 * elements_held(shape, rank) <= MOST_BYTES


def factors_of(changes: Rows, shape: tuple[int, int], rank: int) -> Factors | str:
    """Return the rounded factors of the change of a matrix, or a string that says why there are none.

    ``changes`` yields the rows of the change. If the change is zero, the string is "".
    """
    with alone(), np.errstate(all="ignore"):  # so that the sums do not depend on the number of threads
        square = sum(float(np.vdot(block, block)) for block in changes())
    if not isfinite(square):
        return "the change is not finite"
    if not square:
        return ""
    with alone():
        found = decompose(changes, shape, rank, 0)
    bits = bits_of(rank)
    return Factors(rounded_factor(found.left, bits), rounded_factor(found.right, bits), square)


def bits_of(rank: int) -> int:
    """Return how many bits the elements of two factors of the rank ``rank`` may have.

    With so few bits, a sum of ``rank`` products has at most 53 bits, which float64 represents exactly.
    """
    return min(24, (53 - (rank - 1).bit_length()) // 2)


def rounded_factor(factor: Array, bits: int) -> Array:
    """Return a factor as float32, rounded to integers of at most ``bits`` bits times one power of two."""
    exponent = int(np.frexp(np.abs(factor).max())[1]) - bits
    return np.ascontiguousarray(np.ldexp(np.rint(np.ldexp(factor, -exponent)), exponent), "<f4")


def rows_of(begin: int, number: int, columns: int) -> slice:
    """Return the rows of a matrix in which its elements ``begin`` to ``begin + number`` lie, counted row by row."""
    return slice(begin // columns, -(-(begin + number) // columns))


def add_product(values: Array, dtype: str, left: Array, right: Array, begin: int) -> None:
    """Add the product of ``left`` and ``right`` to ``values``, in place; each sum is rounded once to ``dtype``.

    ``values`` are successive elements of a matrix, row by row, and have the type of ``raw_dtype``. ``left`` has only
    the rows of these elements. ``begin`` is the column of the first element.
    """
    columns, at = right.shape[1], 0
    while at < values.size:
        row, column = divmod(begin + at, columns)
        left_over = values.size - at
        rows = 1 if column else max(1, min(left_over, PART) // columns)
        width = min(columns - column, left_over, PART) if rows == 1 else columns
        factors = (one.astype("<f8") for one in (left[row : row + rows], right[:, column : column + width]))
        part = values[at : at + rows * width]
        with np.errstate(all="ignore"):
            total = widened(part, dtype).astype("<f8") + multiplied(*factors).reshape(-1)
            part[...] = rounded(total, "float64", dtype)[0]
        at += part.size
