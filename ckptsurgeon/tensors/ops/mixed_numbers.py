"""Random integers that depend only on a seed and a position in a tensor, by mixing both.

So threads may compute any part of a tensor in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from .regions import Array

__all__ = ["random_halves", "random_words"]

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64 (https://doi.org/10.1145/2660193.2660195), which mixes seeds and indices of rows."""
_COLUMN, _MIX, _MIX_AGAIN = 0x9E3779B9, 0x21F0AAAD, 0xD35A2D97
"""The constants of a mixer of 32 bits, for the elements of a row (https://github.com/skeeto/hash-prospector)."""


def random_words(indices: Sequence[Array], sizes: Sequence[int], seed: int, draw: int) -> Array:
    """Return random integers of 32 bits for the elements at ``indices`` along each dimension of a tensor of ``sizes``.

    For each value of ``draw``, an element has a different random integer, which is independent of its other integers.
    """
    found: Array = _mixed(_keys(indices[:-1], sizes, seed, draw), indices[-1]).view("<i4")
    return found


def random_halves(indices: Sequence[Array], sizes: Sequence[int], seed: int, draw: int) -> Array:
    """Return random integers of 16 bits; the arguments are the same as for ``random_words``.

    The indices along the last dimension must be in ascending order.

    Two neighbouring columns share a random integer of 32 bits: the first has its lower half.
    """
    keys, columns = _keys(indices[:-1], sizes, seed, draw), indices[-1]
    first, end = (int(columns[0]) // 2, int(columns[-1]) // 2 + 1) if len(columns) else (0, 0)
    made = _mixed(keys, np.arange(first, end))
    made ^= made >> np.uint32(16)  # the lower bits of a product depend on fewer bits than the upper ones
    halves: Array = made.view("<i2")
    begin, number = (int(columns[0]) - 2 * first if len(columns) else 0), len(columns)
    if not number or int(columns[-1]) - int(columns[0]) + 1 == number:
        return halves[..., begin : begin + number]
    return halves[..., columns - 2 * first]


def _mixed(keys: Array, columns: Array) -> Array:
    """Return a random integer of 32 bits for each pair of a row (by its number in ``keys``) and a column."""
    own = (columns.astype("<u4") * np.uint32(_COLUMN)).reshape(_only(keys.ndim - 1, keys.ndim))
    made: Array = own + keys.astype("<u4")
    shifted = made >> np.uint32(16)
    made ^= shifted
    made *= np.uint32(_MIX)
    made ^= np.right_shift(made, np.uint32(15), out=shifted)
    made += (keys >> np.uint64(32)).astype("<u4")  # otherwise all rows would be parts of one sequence
    made *= np.uint32(_MIX_AGAIN)
    return made


def _keys(outer: Sequence[Array], sizes: Sequence[int], seed: int, draw: int) -> Array:
    """Return a random integer of 64 bits for each row (by SplitMix64); the last dimension of the result has size 1."""
    dims = len(outer) + 1
    rows = np.zeros((1,) * dims, np.uint64)
    for at, one in enumerate(outer):
        rows = rows + (one.astype(np.uint64) * np.uint64(prod(sizes[at + 1 : -1]))).reshape(_only(at, dims))
    numbers: Array = rows * np.uint64(_STEP) + np.uint64((seed + draw * _SECOND) % 2**64)
    for shift, times in ((30, _FIRST), (27, _SECOND)):
        numbers ^= numbers >> np.uint64(shift)
        numbers *= np.uint64(times)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _only(at: int, dims: int) -> tuple[int, ...]:
    return (1,) * at + (-1,) + (1,) * (dims - at - 1)
