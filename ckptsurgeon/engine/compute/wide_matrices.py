"""Reads the values of tensors as matrices of a wide dtype, double precision unless another is given."""

from __future__ import annotations

from math import prod

from ...tensors.ops.casts import cast
from ...tensors.ops.regions import Array, Box
from .reading import Part, Seen, read_part

__all__ = ["matrix_of", "rows_of", "whole"]


def rows_of(part: Part, box: Box, seen: Seen | None, dtype: str = "float64") -> Array:
    """Return the rows of a tensor in ``box`` as a matrix of ``dtype``, with all dimensions after the first flattened.

    ``seen``, if given, is called with 0 (the index of the input) and the values as they were read.
    """
    info, source = part
    values = read_part(source, info, box)
    if seen is not None:
        seen(0, values)
    wide, _ = cast(values, info.dtype, dtype)
    return wide.reshape(len(wide) if box else 1, prod(wide.shape[1:]))


def whole(part: Part, dtype: str = "float64") -> Array:
    """Return all values of a tensor, in double precision unless another ``dtype`` is given."""
    info, source = part
    return cast(read_part(source, info, tuple((0, size) for size in info.shape)), info.dtype, dtype)[0]


def matrix_of(part: Part, dtype: str = "float64") -> Array:
    """Return a low-rank factor as a matrix; the kernel dimensions of a convolution become columns."""
    wide = whole(part, dtype)
    return wide.reshape(len(wide), prod(wide.shape[1:]))
