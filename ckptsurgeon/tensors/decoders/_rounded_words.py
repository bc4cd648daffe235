"""Finds packed words of 32 bits that were rounded to floats: float32 keeps 24 bits of a word, bfloat16 8."""

from __future__ import annotations

from math import prod

import numpy as np

from ..info import Decoded
from ..ops.regions import Array

__all__ = ["have_rounded_words"]

PACKED = ("packed", "gptq", "awq", "fp4")
"""The encodings whose codes may be stored in words of 32 bits. The words of MLX's fp4 are read as bytes."""
SAMPLED, FEWEST = 8192, 256
"""About how many words of each decoded part are read, and the fewest words that are enough to judge rounding."""
ROUNDED = 1 << 27
"""From this number on, float32 keeps only multiples of 16: the lowest 4 bits of a word so large are then 0."""
ALL, SOME = 0.99, 0.5
"""Words were rounded if at least the share ``ALL`` of them end in four zero bits.

Less than the share ``SOME`` may have zeros in one of their two highest codes of 4 bits, which every float keeps.
"""


def have_rounded_words(made: Decoded, words: Array) -> bool:
    """Return whether the packed codes ``words`` look like integers that were cast to floats and back.

    Rounding sets the lowest bits of a word to 0. So the result is true if the lowest codes of nearly all words are 0,
    but the highest codes are not. Words that float32 holds exactly are left out.
    """
    if made.encoding not in PACKED or words.nbytes % 4 or words.shape[-1] * words.itemsize % 4:
        return False
    if prod(words.shape) * words.itemsize < 4 * FEWEST:
        return False
    flat = np.ascontiguousarray(words).reshape(-1).view("<u4")
    some = flat[:: flat.size // SAMPLED | 1]
    some = some[(some >= ROUNDED) & (some <= (1 << 32) - ROUNDED)]
    if some.size < FEWEST or np.count_nonzero(some & 15 == 0) < ALL * some.size:
        return False
    return all(np.count_nonzero(some >> at & 15 == 0) < SOME * some.size for at in (24, 28))
