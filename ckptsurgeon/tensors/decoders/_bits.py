"""Unpacks codes of few bits from words of 32 bits, and gives each element the scale of its group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import FormatError
from ..ops.regions import Array

__all__ = ["WORD", "WORDS", "group_numbers", "unpacked", "words_of"]

WORD = 32
WORDS = ("int32", "uint32")
"""Dtypes of words."""


def words_of(span: tuple[int, int], bits: int) -> tuple[int, int]:
    """Return the range of words that hold a range of codes, if the codes are one stream of bits."""
    return span[0] * bits // WORD, -(-span[1] * bits // WORD)


def unpacked(words: Array, span: tuple[int, int], bits: int, places: tuple[int, ...] = ()) -> Array:
    """Return the codes of a range, as uint8, from the words of ``words_of`` along the last dimension.

    The lowest bits of a word come first, and codes of 3, 5 or 6 bits cross words. ``places`` are the places of the
    codes of each word, if it is a permutation.
    """
    words = np.ascontiguousarray(words).view("<u4")
    first = span[0] * bits // WORD * WORD // bits if WORD % bits == 0 else 0
    if WORD % bits == 0:
        shifts = np.asarray(places or range(WORD // bits), "<u4") * np.uint32(bits)
        codes = (words[..., None] >> shifts).astype("u1")  # higher bits are cut off with the upper bytes
        codes &= np.uint8((1 << bits) - 1)
        return codes.reshape(*words.shape[:-1], -1)[..., span[0] - first : span[1] - first]
    at = np.arange(*span) * bits - span[0] * bits // WORD * WORD
    wide = np.concatenate([words, np.zeros_like(words[..., :1])], -1).astype("<u8")
    pairs = wide[..., at // WORD] | wide[..., at // WORD + 1] << np.uint64(WORD)
    made: Array = (pairs >> (at % WORD).astype("<u8")).astype("u1") & np.uint8((1 << bits) - 1)
    return made


def group_numbers(span: tuple[int, int], size: int, arrays: Mapping[str, Array], groups: int) -> Array:
    """Return the number of the group of each input in a range, counted from the first group that the range overlaps.

    ``arrays`` may have the stored numbers (``order``): all ``groups`` are then read, and these numbers are returned.
    Raises FormatError for numbers of other groups.
    """
    if "order" in arrays:
        order = arrays["order"].astype(np.intp)
        if order.size and not 0 <= int(order.min()) <= int(order.max()) < groups:
            raise FormatError(f"the order of its columns (g_idx) names other groups than its {groups}.", rule="g_idx")
        return order
    return np.arange(*span) // size - span[0] // size
