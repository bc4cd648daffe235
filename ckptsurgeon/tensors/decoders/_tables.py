"""Looks up the products of 8-bit floats and their scale: for each scale there are only 256 different products.

The products in the table are already rounded to the dtype of the output. Looking them up takes one pass over the
elements; decoding, multiplying and rounding would take nine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod

import numpy as np

from ..info import Decoded
from ..ops.casts import cast
from ..ops.regions import Array, Box, box_shape
from ..ops.small_floats import SMALL_FLOATS, from_small

__all__ = ["CODES", "is_looked_up", "looked_up", "may_be_looked_up", "products", "runs", "scale_numbers"]

CODES = 256
"""The number of different 8-bit codes."""
SMALL = 1 << 16
"""Indices into a table with at most this many elements fit in two bytes."""
FEWER = 8
"""A part of a weight is looked up only if it has at least this many elements for each product in the table."""
ELEMENTS = 1 << 17
"""How many elements are looked up at once: their indices, of 8 bytes each, fit in the level-2 cache of a core."""


def may_be_looked_up(made: Decoded, boxes: Mapping[str, Box]) -> bool:
    """Return whether a table of all products of codes and scales saves time for a part of a weight.

    It saves time if the codes are 8-bit floats, and the part has far more elements than there are products. ``boxes``
    has, by role, the part of each stored tensor that is needed.
    """
    stored = dict(made.parts)
    if made.encoding != "scaled" or set(stored) != {"codes", "scale"} or "times" in dict(made.facts):
        return False
    elements, scales = (prod(box_shape(boxes[role])) for role in ("codes", "scale"))
    return stored["codes"].dtype in SMALL_FLOATS and elements >= FEWER * CODES * max(1, scales)


def is_looked_up(made: Decoded) -> bool:
    """Return whether all values of a weight may be looked up in a table of the products of codes and scales.

    If a product becomes infinite or zero, ``products`` makes no table, and the values are computed after all.
    """
    return may_be_looked_up(made, {role: tuple((0, size) for size in info.shape) for role, info in made.parts})


def products(codes: str, scale: Array, dtype: str) -> Array | None:
    """Return the 256 values of the 8-bit dtype ``codes`` times each scale, rounded to ``dtype``, as one vector.

    All products of the first scale come first, then those of the second, and so on. Returns None if a product is
    infinite, or becomes infinite or zero in ``dtype``: the caller then has to compute the values without a table, to
    count them.
    """
    values = from_small(np.arange(CODES, dtype="u1"), codes)
    with np.errstate(all="ignore"):
        found = values * np.ascontiguousarray(scale, "<f4").reshape(-1, 1)
    table, lost = cast(found, "float32", dtype)
    is_whole = not lost.infinite and not lost.zero and bool(np.isfinite(found[:, np.isfinite(values)]).all())
    return table.reshape(-1) if is_whole else None


def looked_up(codes: Array, table: Array, scales: Sequence[int], box: Box, steps: Sequence[int]) -> Array:
    """Return the product of each code and its scale, taken from ``table``, which has all products.

    ``codes`` are the codes, as bytes, in the part ``box`` of the weight. ``scales`` is the shape of the array of
    scales, with one scale for each block that the part overlaps; it has as many dimensions as the weight. ``steps`` is
    the size of a block along each dimension.
    """
    rows, columns = (one * CODES for one in scale_numbers(scales, box, steps))
    width = max(1, len(columns))
    flat, out = codes.reshape(-1, width), np.empty((codes.size // width, width), table.dtype)
    alike = bool(columns.any())
    columns = _narrowed(columns)
    for begin, end in runs(rows, max(1, ELEMENTS // width), alike=alike):
        low = rows[begin:end].min()
        first = columns if alike else _narrowed(rows[begin:end, None] - low)
        # No index is beyond the table: mode="clip" only saves the check of the indices.
        np.take(table[low:], flat[begin:end] + first, out=out[begin:end], mode="clip")
    return out.reshape(codes.shape)


def _narrowed(places: Array) -> Array:
    """Return indices as uint16 if they still fit after a code is added: uint16 is added four times as fast."""
    return places.astype("<u2") if places.max(initial=0) <= SMALL - CODES else places


def scale_numbers(shape: Sequence[int], box: Box, steps: Sequence[int]) -> tuple[Array, Array]:
    """Return two arrays whose sum ``rows[i] + columns[j]`` is the index of the scale of the element at (i, j).

    For this, all dimensions except the last are flattened to one dimension, the rows.
    """
    numbers = [
        _numbers_along(begin, end, step, prod(shape[dim + 1 :]) if size > 1 else 0)
        for dim, ((begin, end), step, size) in enumerate(zip(box, steps, shape, strict=True))
    ]
    rows = np.zeros(1, np.intp)
    for one in numbers[:-1]:
        rows = (rows[:, None] + one).reshape(-1)
    return rows, numbers[-1]


@lru_cache(8)  # the blocks of a model have few widths
def _numbers_along(begin: int, end: int, step: int, stride: int) -> Array:
    """Return the index of the scale of each element from ``begin`` to ``end`` along a dimension, times ``stride``."""
    found: Array = (np.arange(begin, end) // step - begin // step) * stride
    found.setflags(write=False)
    return found


def runs(rows: Array, most: int, *, alike: bool) -> Iterator[tuple[int, int]]:
    """Yield ranges (begin, end) of at most ``most`` rows; if ``alike``, all rows of a range have the same scales.

    ``rows`` has a number for each row; rows with equal numbers have the same scales.
    """
    ends = [*(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(rows)] if alike else [len(rows)]
    begin = 0
    for end in ends:
        for at in range(begin, end, most):
            yield at, min(at + most, end)
        begin = end
