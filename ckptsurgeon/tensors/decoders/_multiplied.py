"""Multiplies 8-bit floats by their scales with a few operations on whole arrays, which take half as long as look-ups.

The bits of the codes are shifted to their places in a float32, which is then multiplied by the scale and rounded to
bfloat16. Each operation is done for as many rows as fit in a core's cache. The values are the same as in the table of
all products (``_tables``), bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ops.casts import raw_dtype
from ..ops.regions import Array, Box
from ..ops.small_floats import all_finite, power_of_bits, put_bits
from ._tables import runs, scale_numbers

__all__ = ["multiplied"]

ELEMENTS = 1 << 18
"""How many elements are multiplied at once: their float32 values take 1 MiB, as much as the level-2 cache of a core."""
DTYPES = ("bfloat16", "float32")
"""The dtypes that products are rounded to here; a table is used for other dtypes."""
LEAST, LARGEST = 2.0 ** (17 - 126), 2.0 ** (126 - 16)
"""All products with scales in this range are normal float32 numbers.

The smallest 8-bit float above 0 is 2**-17, and the largest is below 2**16.
"""


def multiplied(codes: Array, scale: Array, box: Box, steps: Sequence[int], *, source: str, dtype: str) -> Array | None:
    """Return the products of codes and scales, rounded to ``dtype``; None if the caller has to look them up.

    ``codes`` are the codes, as bytes of the 8-bit float ``source``, in the part ``box`` of the weight. ``scale`` is the
    array of scales (float32), with one scale for each block that the part overlaps; it has as many dimensions as the
    weight. ``steps`` is the size of a block along each dimension.
    """
    power = power_of_bits(source)
    if power is None or dtype not in DTYPES or not codes.size or not all_finite(codes, source):
        return None
    factors = scale.reshape(-1).astype("<f4")
    if not factors.min() >= LEAST or not factors.max() <= min(LARGEST, 2.0 ** (127 - power)) or _flushes():
        return None
    is_even = _has_ties(factors)
    factors *= np.float32(2.0**power)
    rows, columns = scale_numbers(scale.shape, box, steps)
    width = max(1, len(columns))
    flat, out = codes.reshape(-1, width), np.empty((codes.size // width, width), raw_dtype(dtype))
    alike, known, own = bool(columns.any()), -1, factors[:1]
    arrays = 2 if is_even else 1
    most = max(1, ELEMENTS // width // arrays)
    work = np.empty((arrays, min(most, len(flat)), width), "<u4")
    for begin, end in runs(rows, most, alike=alike):
        if not alike:
            own = factors[rows[begin:end, None]]
        elif rows[begin] != known:
            known = rows[begin]
            own = factors[known + columns]
        _multiply(flat[begin:end], own, out[begin:end], source, work[:, : end - begin])
    return out.reshape(codes.shape)


def _multiply(codes: Array, factors: Array, out: Array, source: str, work: Array) -> None:
    """Write codes times factors to ``out``, as float32 or bfloat16 (uint16).

    ``work`` has one or two arrays of uint32 for intermediate results. With one array, ties are not rounded to even: use
    two if a product may lie exactly in the middle between two values of bfloat16 (see ``_round``).
    """
    bits = out.view("<u4") if out.dtype == "<f4" else work[0]
    put_bits(codes, source, bits.view("<i4"))
    values = bits.view("<f4")
    np.multiply(values, factors, out=values)
    if out.dtype != "<f4":
        _round(work, out)


def _round(work: Array, out: Array) -> None:
    """Write the upper halves of the bits of float32 values to ``out``, rounded to the nearest.

    ``work[0]`` has the bits, which are overwritten. If there is a second array ``work[1]``, ties are rounded to even.
    Without it, there must be no ties.
    """
    bits, *others = work
    for odd in others:
        np.right_shift(bits, np.uint32(16), out=odd)
        odd &= np.uint32(1)
        odd += np.uint32(0x7FFF)
        bits += odd
    if not others:
        bits += np.uint32(0x8000)
    bits >>= np.uint32(16)
    np.copyto(out, bits, casting="unsafe")


def _has_ties(scale: Array) -> bool:
    """Return whether the product of a scale and a code may lie in the middle between two values of bfloat16.

    The fraction of a code has at most three bits after the leading one, so only eight fractions have to be tried.
    """
    fractions = scale.reshape(-1, 1) * np.arange(8, 16, dtype="<f4")
    return bool((fractions.view("<u4") & np.uint32(0xFFFF) == 0x8000).any())


def _flushes() -> bool:
    """Return whether this thread computes with 0 in place of subnormal numbers, as torch can be told to.

    The bits of small codes, as float32, are subnormal numbers.
    """
    return not (np.full(1, 2.0**-140, "<f4") * np.float32(2.0**100)).any()
