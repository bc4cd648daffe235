"""Measures whether the highest code in packed words has the same standard deviation as the other codes in the words.

The value of a code does not depend on its position in a word, so in a quantised model all positions have nearly the
same standard deviation. They do not if the packed words of two models were averaged as plain numbers. The highest codes
of averaged words are means of two codes. In all other positions, half of the range of codes is added to the mean if the
sum of the next higher codes is odd.
"""

from __future__ import annotations

from math import copysign, prod

import numpy as np

from ..info import Decoded
from ..ops.regions import Array

__all__ = ["spread_of_highest"]

WORDS, BYTES = ("packed", "gptq", "awq"), "bitsandbytes"
"""The encodings with codes in words of 32 bits, and the encoding with two codes of 4 bits in each byte."""
SIZES = (2, 4, 8)
"""The numbers of bits of codes that have the same positions in every word: no code is split between two words."""
ROWS, COLUMNS, FEWEST = 128, 128, (16, 8)
"""About how many rows and columns of words are examined of each decoded part, and the fewest of each."""
ERRORS = 2.5
"""This many standard errors are subtracted from a measured difference, since places also differ by their inputs."""


def spread_of_highest(made: Decoded, stored: Array) -> float | None:
    """Return how much the spread of the highest codes of words differs from that of the other codes, or 0 if by chance.

    The spread is the natural logarithm of the standard deviation. The result is negative if the highest codes have a
    smaller spread. Its magnitude is reduced by the error of the measurement, so that it is 0 for a difference that may
    be by chance. Returns None for encodings without words, and for too few words. ``stored`` are the packed words, or
    the bytes of bitsandbytes.
    """
    bits = int(dict(made.facts).get("bits", 4))
    words = _words(made, stored)
    if words is None or bits not in SIZES:
        return None
    rows, columns = words.shape
    some = words[:: rows // ROWS | 1, :: columns // COLUMNS | 1]
    places = np.arange(0, 8 * words.itemsize, bits, dtype=some.dtype)
    spreads = _log_spreads(some >> places[:, None, None] & (1 << bits) - 1)
    spreads = spreads[:, np.isfinite(spreads).all(0)]
    number = spreads.shape[1]
    if some.shape[0] < FEWEST[0] or number < FEWEST[1]:
        return None
    differences = spreads[-1] - spreads[:-1].mean(0)
    # With ddof=3, the error is the standard deviation of Student's t.
    mean, error = float(differences.mean()), float(differences.std(ddof=3)) / number**0.5
    return copysign(max(0.0, abs(mean) - ERRORS * error), mean)


def _log_spreads(codes: Array) -> Array:
    """Return the logarithm of the standard deviation of ``codes`` (positions, rows, columns) over the rows.

    The result has the shape (positions, columns). A code is at most 255, and there are fewer than 2 * ``ROWS`` rows: so
    sums of squares are below 2**24, and float32 holds them exactly.
    """
    numbers = codes.astype("<f4")
    sums, squares = numbers.sum(1, dtype="<f8"), np.einsum("prc,prc->pc", numbers, numbers).astype("<f8")
    rows = codes.shape[1]
    with np.errstate(divide="ignore"):
        found: Array = np.log(rows * squares - sums * sums) / 2 - np.log(rows)
    return found


def _words(made: Decoded, stored: Array) -> Array | None:
    """Return words as a matrix (rows, columns), in which a column has the codes of the same inputs (for AWQ, outputs).

    The codes of bitsandbytes are returned as bytes. They may begin within a row of the weight, because all rows are
    stored one after the other. Returns None for an encoding without words, and for codes that do not fill a row.
    """
    if made.encoding == BYTES:
        facts = dict(made.facts)
        width = prod(int(size) for name, size in facts.items() if name.startswith("size") and name != "size0")
        rows = 2 * stored.size // width
        return stored.reshape(-1)[: rows * width // 2].reshape(rows, -1) if rows and not width % 2 else None
    if made.encoding not in WORDS or stored.itemsize != 4 or not stored.size:
        return None
    words = np.ascontiguousarray(stored).view("<u4")
    return words.T if made.encoding == "gptq" else words.reshape(-1, words.shape[-1])
