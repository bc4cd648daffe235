"""Unpacks codes of few bits from words of 32 bits, and finds which group (and so which scale) an element has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import FormatError
from ...util.text import escape
from ..info import Decoded, TensorInfo
from ..ops.regions import Array
from ..quantised.contradictions import is_odd_size
from ._decoder import StatedSettings, UndecodableError

__all__ = ["WORD", "WORDS", "check_zeros", "group_numbers", "group_size", "unpacked", "words_of"]

WORD = 32
"""The number of bits in a word."""
WORDS = ("int32", "uint32")
"""The dtypes in which words are stored."""


def check_zeros(zero: TensorInfo, wanted: tuple[int, ...], words: tuple[str, ...] = WORDS) -> None:
    """Raise UndecodableError unless zero points have one of the dtypes ``words`` and the shape ``wanted``."""
    if zero.dtype not in words:
        raise UndecodableError(f"the zero points are {zero.dtype}, not {' or '.join(words)}")
    if zero.shape != wanted:
        raise UndecodableError(f"the zero points have the shape {list(zero.shape)}, but the scales need {list(wanted)}")


def words_of(span: tuple[int, int], bits: int) -> tuple[int, int]:
    """Return the range (begin, end) of the words that contain the codes in the range ``span``, packed without gaps."""
    return span[0] * bits // WORD, -(-span[1] * bits // WORD)


def unpacked(words: Array, span: tuple[int, int], bits: int, places: tuple[int, ...] = ()) -> Array:
    """Return the codes in the range ``span``, as uint8; ``words`` are the words in the range that ``words_of`` returns.

    Words and codes run along the last dimension. The lowest bits of a word come first, and a code of 3, 5 or 6 bits may
    begin in one word and end in the next. If the codes of a word are permuted, ``places[i]`` is the position of the
    code ``i`` in the word.
    """
    words = np.ascontiguousarray(words).view("<u4")
    first = span[0] * bits // WORD * WORD // bits if WORD % bits == 0 else 0
    if WORD % bits == 0:
        shifts = np.asarray(places or range(WORD // bits), "<u4") * np.uint32(bits)
        codes = (words[..., None] >> shifts).astype("u1")  # the cast drops the upper bytes
        codes &= np.uint8((1 << bits) - 1)
        return codes.reshape(*words.shape[:-1], -1)[..., span[0] - first : span[1] - first]
    at = np.arange(*span) * bits - span[0] * bits // WORD * WORD
    wide = np.concatenate([words, np.zeros_like(words[..., :1])], -1).astype("<u8")
    pairs = wide[..., at // WORD] | wide[..., at // WORD + 1] << np.uint64(WORD)
    made: Array = (pairs >> (at % WORD).astype("<u8")).astype("u1") & np.uint8((1 << bits) - 1)
    return made


def group_size(columns: int, groups: int, settings: StatedSettings, *, is_ordered: bool) -> int:
    """Return how many columns share a scale; the last of the ``groups`` groups may be smaller.

    The group sizes in the settings decide if the shapes do not. Raises UndecodableError if no size fits, unless
    ``is_ordered`` is true: then a ``g_idx`` has the group of each column.
    """
    sizes = [size for size in settings.stated.sizes if size > 0 and not is_odd_size(size, columns, groups)]
    fitting = [size for size in sizes if -(-columns // size) == groups]
    if columns % groups == 0 and (not fitting or groups == 1 or columns // groups in fitting):
        return columns // groups
    if not fitting and not is_ordered:
        why = (
            "no group_size in the settings fits"
            if settings.fields
            else "no config.json next to the weights has the settings of the quantisation, which state the group_size"
        )
        raise UndecodableError(f"there are {groups} groups of scales for {columns} columns, and {why}")
    return next(iter(fitting), -(-columns // groups))


def group_numbers(
    made: Decoded, span: tuple[int, int], arrays: Mapping[str, Array], groups: int, *, may_be_unset: bool = False
) -> Array:
    """Return, for each input in the range ``span``, the index of its group in the arrays of scales that were read.

    If ``arrays`` has no ``order``, all groups have the same size (``group`` in ``made.facts``), and only the scales of
    groups that ``span`` overlaps were read. If it has ``order``, which is GPTQ's g_idx, the scales of all ``groups``
    groups were read, and the entries of ``order`` are returned. Raises FormatError if an entry is negative or not below
    ``groups``. If ``may_be_unset`` is true, an ``order`` whose entries are all -1 is ignored, as in compressed-tensors
    (quantization/lifecycle/forward.py).
    """
    size = int(dict(made.facts)["group"])
    if "order" in arrays:
        order = arrays["order"].astype(np.intp)
        if may_be_unset and order.size and bool((order == -1).all()):
            return np.arange(*span) // size
        if order.size and not 0 <= int(order.min()) <= int(order.max()) < groups:
            raise FormatError(
                f"the order of the columns (g_idx) of the quantised tensor {escape(made.name)} contains a group index "
                f"outside 0 to {groups - 1}.",
                rule="g_idx",
            )
        return order
    return np.arange(*span) // size - span[0] // size
