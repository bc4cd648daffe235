"""Tells from the number of codes at the ends of their range whether codes are signed, or weights were clipped."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..info import Decoded
from ..ops.casts import raw_dtype, widened
from ..ops.regions import Array

__all__ = ["have_clipped_codes", "have_signed_codes"]

PACKED = ("packed", "gptq", "awq")
"""The encodings whose codes are unsigned numbers of few bits in words of 32 bits."""
SAMPLED = 8192
"""About how many words, or codes of 8 bits, are looked at in each decoded part."""
CODES, DISTINCT = 2048, 9
"""Codes are judged only if there are at least ``CODES``, ``DISTINCT`` of them different: ternary weights have 3."""
END, MIDDLE = 0.28, 0.15
"""Codes look signed if each end (a quarter) of their range has at least the share ``END`` of them.

The middle quarter must have less than the share ``MIDDLE``. Equally distributed weights have up to 0.28 at an end and
at least 0.23 in the middle; normal weights have up to 0.2 and at least 0.33. Without the offset, normal weights in
groups of 32 or more have at least 0.35 at an end and up to 0.13 in the middle.
"""
UNPACKED_CODES = ("scaled", "torch_quantised")
"""The encodings whose codes are not packed."""
UNPACKED = ("int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
"""The dtypes of codes of 8 bits that are not packed."""
MANY, FEW_CLIPPED, MANY_CLIPPED = 64, 0.1, 0.01
"""Weights were clipped if the lowest and the highest code each have more than the share ``FEW_CLIPPED`` of all codes.

If there are more than ``MANY`` different codes, as with 8 bits, the share is ``MANY_CLIPPED``. Methods that search for
the scale with the smallest error clip fewer weights.
"""
PER_SCALE = 1.5
"""For each scale, this many codes are expected at each end: the largest weight of a group gets an outermost code."""
TIMES = 3
"""The outermost codes must be more than this many times as frequent as the codes next to them.

Without clipping, they are rarer: only half as many numbers are rounded to them as to other codes.
"""


def have_signed_codes(made: Decoded, words: Array) -> bool:
    """Return whether packed codes (of 4 or 8 bits) seem to be signed: the offset was not added to them.

    Weights near 0 are the most frequent. With the offset, their codes are in the middle of the range. Without it, they
    are at both ends, in two's complement: 0, 1, 2 and 15, 14. Clipped weights are at the outermost codes only.
    """
    if made.encoding not in PACKED or (codes := _unpacked(made, words)) is None:
        return False
    counts = np.bincount(codes, minlength=1 << _bits(made))
    if codes.size < CODES or np.count_nonzero(counts) < DISTINCT:
        return False
    eighths = counts.reshape(8, -1).sum(1) / codes.size
    low, middle, high = eighths[:2].sum(), eighths[3:5].sum(), eighths[6:].sum()
    near, size = counts.size // 8, counts.size // 4
    usual = counts[(counts.size - size) // 2 :][:size].mean()
    falls = min(counts[1 : near + 1].mean(), counts[-near - 1 : -1].mean()) > 2 * usual
    return bool(min(low, high) >= END and middle < MIDDLE and falls)


def have_clipped_codes(made: Decoded, codes: Array, scales: int, *, are_powers: bool) -> bool:
    """Return whether the lowest and the highest code are both far more frequent than the codes next to them.

    A scale is chosen so that only the largest weight of its group gets the outermost code. If the scale is too small,
    all larger weights get this code, too. ``codes`` are the stored codes of a part of a weight, and ``scales`` is how
    many scales this part has. If scales are powers of two (``are_powers``), they are often rounded down, so that some
    weights are clipped. Codes that are floats may be given as bytes or as numbers.
    """
    if made.encoding in PACKED:
        some = _unpacked(made, codes)
        number = codes.size * codes.itemsize * 8 // _bits(made)
    else:
        dtype, number = dict(made.parts)["codes"].dtype, codes.size
        some = _some(codes) if made.encoding in UNPACKED_CODES and dtype in UNPACKED else None
    if some is None or some.size < CODES:
        return False
    counts = _counts(made, some)
    shares = counts[counts > 0] / some.size
    if shares.size < DISTINCT:
        return False
    is_fine = shares.size > MANY and not are_powers
    most = (MANY_CLIPPED if is_fine else FEW_CLIPPED) + PER_SCALE * scales / number
    return all(end > max(most, TIMES * other) for end, other in ((shares[0], shares[1]), (shares[-1], shares[-2])))


def _counts(made: Decoded, some: Array) -> Array:
    """Return how often each code occurs, by the value of the code in ascending order.

    ``some`` are unsigned codes, or codes of 8 bits as they are stored, or numbers.
    """
    if some.itemsize > 1:
        return np.unique(some, return_counts=True)[1]
    counts = np.bincount(some.view("u1"), minlength=256)
    if made.encoding in PACKED:
        return counts
    return np.bincount(_ranks(dict(made.parts)["codes"].dtype), weights=counts)


@lru_cache
def _ranks(dtype: str) -> Array:
    """Return, for each byte, the rank of its value among all values of an 8-bit dtype, in ascending order."""
    every = np.arange(256, dtype="u1")
    values = widened(every.view(raw_dtype(dtype)), dtype)
    return np.unique(values, return_inverse=True)[1].astype("u1")


def _unpacked(made: Decoded, words: Array) -> Array | None:
    """Return some of the unsigned codes in packed words, in any order; None if codes have neither 4 nor 8 bits."""
    bits = _bits(made)
    if bits not in (4, 8):
        return None
    octets = np.ascontiguousarray(_some(words)).view("u1")
    return np.concatenate([octets & 15, octets >> 4]) if bits == 4 else octets


def _bits(made: Decoded) -> int:
    return int(dict(made.facts).get("bits", 4))


def _some(stored: Array) -> Array:
    """Return about ``SAMPLED`` elements, at equal distances; the distance is odd, so that all columns are looked at."""
    flat = stored.reshape(-1)
    some: Array = flat[:: flat.size // SAMPLED | 1]
    return some
