"""Looks 8-bit floats times their scale up: of the codes with one scale, only 256 products differ.

A product that is looked up is already rounded to the dtype of the output, so that there is one pass over the elements
instead of nine: decoding, multiplying, and the steps of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np

from ..info import Decoded
from ..ops.casts import cast
from ..ops.regions import Array, Box, box_shape
from ..ops.small_floats import SMALL_FLOATS, from_small

__all__ = ["is_looked_up", "looked_up", "may_be_looked_up", "products"]

CODES = 256
"""How many codes of 8 bits there are."""
SMALL = 1 << 16
"""How many places a number of two bytes may be."""
FEWER = 8
"""A part of a weight is looked up if it has so many times more elements than there are products."""
ELEMENTS = 1 << 17
"""Elements that are looked up at once: their places, of 8 bytes each, fit in a core's cache of the second level."""


def may_be_looked_up(made: Decoded, boxes: Mapping[str, Box]) -> bool:
    """Return whether a part of a weight has many more elements than products, which are those of 8-bit floats.

    ``boxes`` are the parts of its stored tensors that are needed.
    """
    stored = dict(made.parts)
    if made.encoding != "scaled" or set(stored) != {"codes", "scale"} or "times" in dict(made.facts):
        return False
    elements, scales = (prod(box_shape(boxes[role])) for role in ("codes", "scale"))
    return stored["codes"].dtype in SMALL_FLOATS and elements >= FEWER * CODES * max(1, scales)


def is_looked_up(made: Decoded) -> bool:
    """Return whether the values of a whole weight may be looked up, unless some products become infinite or zero."""
    return may_be_looked_up(made, {role: tuple((0, size) for size in info.shape) for role, info in made.parts})


def products(codes: str, scale: Array, dtype: str) -> Array | None:
    """Return every value of an 8-bit dtype (``codes``) times each scale, in ``dtype``: the 256 of a scale in a row.

    Returns None if some product is infinite, or becomes infinite or zero in ``dtype``: the caller has to count those.
    """
    values = from_small(np.arange(CODES, dtype="u1"), codes)
    with np.errstate(all="ignore"):
        found = values * np.ascontiguousarray(scale, "<f4").reshape(-1, 1)
    table, lost = cast(found, "float32", dtype)
    is_whole = not lost.infinite and not lost.zero and bool(np.isfinite(found[:, np.isfinite(values)]).all())
    return table.reshape(-1) if is_whole else None


def looked_up(codes: Array, table: Array, scales: Sequence[int], box: Box, steps: Sequence[int]) -> Array:
    """Return the product of each code and its scale, from the ``table`` of all products.

    ``codes`` are bytes, those in the part ``box`` of the weight. ``scales`` is the shape of the scales: one for each
    block that the part overlaps, in as many dimensions. ``steps`` are the sizes of a block.
    """
    rows, columns = (one * CODES for one in _scale_numbers(scales, box, steps))
    width = max(1, len(columns))
    flat, out = codes.reshape(-1, width), np.empty((codes.size // width, width), table.dtype)
    alike = bool(columns.any())
    columns = _narrowed(columns)
    for begin, end in _runs(rows, max(1, ELEMENTS // width), alike=alike):
        low = rows[begin:end].min()
        first = columns if alike else _narrowed(rows[begin:end, None] - low)
        # No place is beyond the table: the mode saves a check.
        np.take(table[low:], flat[begin:end] + first, out=out[begin:end], mode="clip")
    return out.reshape(codes.shape)


def _narrowed(places: Array) -> Array:
    """Return places in two bytes if their sums with codes fit: such a sum takes a quarter of the time."""
    return places.astype("<u2") if places.max(initial=0) <= SMALL - CODES else places


def _scale_numbers(shape: Sequence[int], box: Box, steps: Sequence[int]) -> tuple[Array, Array]:
    """Return the number of the scale of each row, all leading dimensions taken together, and what a column adds."""
    numbers = [
        (np.arange(begin, end) // step - begin // step) * (size > 1) * prod(shape[dim + 1 :])
        for dim, ((begin, end), step, size) in enumerate(zip(box, steps, shape, strict=True))
    ]
    rows = np.zeros(1, np.intp)
    for one in numbers[:-1]:
        rows = (rows[:, None] + one).reshape(-1)
    return rows, numbers[-1]


def _runs(rows: Array, most: int, *, alike: bool) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most ``most`` rows; those of a range have the same scales if they must be ``alike``."""
    ends = [*(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(rows)] if alike else [len(rows)]
    begin = 0
    for end in ends:
        for at in range(begin, end, most):
            yield at, min(at + most, end)
        begin = end
