"""Computes random factors for copies of elements; their mean over all copies is 1, so that sums stay the same.

Two copies get opposite noise, so one random number serves both. If the number of copies is odd, the noise of the last
three is their random number minus the mean of all three. A random number depends on the seed and on the position of the
element, so threads may compute any part of a tensor in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeAlias

import numpy as np

from ..dtypes import DTYPES
from .casts import cast
from .regions import Array, Box, box_shape

__all__ = ["noisy_factors", "with_noise"]

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64 (https://doi.org/10.1145/2660193.2660195), which mixes seeds and indices of rows."""
_COLUMN, _MIX, _MIX_AGAIN = 0x9E3779B9, 0x21F0AAAD, 0xD35A2D97
"""The constants of a mixer of 32 bits, for the elements of a row (https://github.com/skeeto/hash-prospector)."""


Runs: TypeAlias = tuple[tuple[int, int], ...]
"""Ranges of indices: in order, they list, for each index along a dimension, the index that it is a copy of."""


def with_noise(
    values: Array, dtype: str, shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int
) -> Array:
    """Return the part ``box`` of a tensor multiplied by its factors, then rounded to ``dtype``.

    ``values`` are the stored values of this part. The other arguments are the same as for ``noisy_factors``. The
    products are computed in double precision, or in single precision if ``dtype`` has 16 bits or fewer.
    """
    wide = "float32" if DTYPES[dtype].bits <= 16 else "float64"
    found = np.empty_like(values)
    for part in _parts(box):
        rows = slice(part[0][0] - box[0][0], part[0][1] - box[0][0])
        factors = _part(shape, part, dim, runs, by, seed, wide)
        factors *= cast(values[rows], dtype, wide)[0]
        found[rows] = cast(factors, wide, dtype)[0]
    return found


def noisy_factors(shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int) -> Array:
    """Return the factors of the elements in ``box`` of a tensor with this shape, in double precision.

    Each factor is 1 plus noise from -by to by that sums to 0 over all copies of the element. The ``runs`` determine the
    copies along ``dim``. If an element has no other copy, its factor is 1. A factor depends only on the position of the
    element in the tensor, not on ``box``.
    """
    return np.concatenate([_part(shape, part, dim, runs, by, seed, "float64") for part in _parts(box)])


def _parts(box: Box) -> list[Box]:
    """Return parts of ``box`` along its first dimension that are computed one after the other."""
    most = max(1, _AT_ONCE // max(1, prod(end - begin for begin, end in box[1:])))
    begin, end = box[0]
    return [((first, min(first + most, end)), *box[1:]) for first in range(begin, max(end, begin + 1), most)]


_AT_ONCE = 1 << 17
"""How many elements are computed at once: as many as fit in a core's cache. Each call of NumPy takes time, too."""


def _part(shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int, wide: str) -> Array:
    """Return the factors of the elements in ``box``, which is small enough for a core's cache."""
    sizes = [max(end for _, end in runs) if at == dim else size for at, size in enumerate(shape)]
    found = np.empty(box_shape(box), wide)
    before = (slice(None),) * dim
    for group in _groups(runs, *box[dim]):
        indices = [group.originals if at == dim else np.arange(*span) for at, span in enumerate(box)]
        draws = [_random(indices, sizes, seed, draw).astype(wide) for draw in group.draws]
        for one in draws:
            one *= by * 2.0**-31
        for (into, places), noise in zip(group.copies, _noises(draws), strict=True):
            found[(*before, into)] = noise[(*before, places)]
    found[(*before, _alone(runs, *box[dim]))] = 0.0
    found += 1.0
    return found


def _noises(draws: Sequence[Array]) -> Iterator[Array]:
    """Yield the noise of each copy: of two copies if ``draws`` has one array of random numbers, of three if three."""
    if len(draws) == 1:
        yield draws[0]
        yield np.negative(draws[0], out=draws[0])
        return
    quarter = np.add(np.add(draws[0], draws[1]), draws[2]) * 0.25
    for one in draws:  # three quarters of its difference from the mean: at most as large as the largest random number
        yield one * 0.75 - quarter


def _random(indices: Sequence[Array], sizes: Sequence[int], seed: int, draw: int) -> Array:
    """Return random integers of 32 bits for the elements at ``indices`` along each dimension of a tensor of ``sizes``.

    ``draw`` numbers independent random integers of the same element.
    """
    *outer, columns = indices
    dims = len(indices)
    rows = np.zeros((1,) * dims, np.uint64)
    for at, one in enumerate(outer):
        rows = rows + (one.astype(np.uint64) * np.uint64(prod(sizes[at + 1 : -1]))).reshape(_only(at, dims))
    keys = _mixed(rows * np.uint64(_STEP) + np.uint64((seed + draw * _SECOND) % 2**64))
    made = (columns.astype("<u4") * np.uint32(_COLUMN)).reshape(_only(dims - 1, dims)) + keys.astype("<u4")
    shifted = made >> np.uint32(16)
    made ^= shifted
    made *= np.uint32(_MIX)
    made ^= np.right_shift(made, np.uint32(15), out=shifted)
    made += (keys >> np.uint64(32)).astype("<u4")  # otherwise all rows would be parts of one sequence
    made *= np.uint32(_MIX_AGAIN)
    found: Array = made.view("<i4")
    return found


def _mixed(numbers: Array) -> Array:
    """Return the numbers mixed by SplitMix64."""
    for shift, times in ((30, _FIRST), (27, _SECOND)):
        numbers ^= numbers >> np.uint64(shift)
        numbers *= np.uint64(times)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _only(at: int, dims: int) -> tuple[int, ...]:
    return (1,) * at + (-1,) + (1,) * (dims - at - 1)


@lru_cache(maxsize=8)
def _copies(runs: Runs) -> tuple[Array, Array, Array]:
    """Return three arrays with an entry for each index along the dimension; each index is a copy of an original index.

    The entries are the original index, how many of its copies come before this copy, and how many copies it has in all.
    """
    original = np.concatenate([np.arange(begin, end) for begin, end in runs])
    order = np.argsort(original, kind="stable")
    number = np.bincount(original)
    first = np.cumsum(number) - number
    rank = np.empty_like(original)
    rank[order] = np.arange(len(original)) - first[original[order]]
    return original, rank, number[original]


Indices: TypeAlias = "Array | slice"


@dataclass(frozen=True)
class _Group:
    """Two or three copies of each of some elements; ``originals`` are the indices of the elements that were copied.

    The copies of an element share random numbers: one number for two copies, three for three copies. ``draws`` are the
    arguments ``draw`` of ``_random`` for these numbers. ``copies`` has an item for the first, the second and perhaps
    the third copies: their indices, counted from the beginning of a range, and the positions of the elements that they
    copy in ``originals``.
    """

    draws: tuple[int, ...]
    originals: Array
    copies: tuple[tuple[Indices, Indices], ...]


@lru_cache(maxsize=64)
def _groups(runs: Runs, begin: int, end: int) -> tuple[_Group, ...]:
    """Return the groups of copies at the indices from ``begin`` up to ``end``, without elements that have no copy."""
    original, rank, number = (one[begin:end] for one in _copies(runs))
    threes = (number % 2 == 1) & (rank >= number - 3)
    first = np.where(threes, (number - 3) // 2, rank // 2)
    which = np.where(threes, rank - (number - 3), rank % 2)
    groups = []
    for three in (False, True):
        mine = (threes == three) & (number > 1)
        for draw in np.unique(first[mine]).tolist():
            at = np.flatnonzero(mine & (first == draw))
            found, places = np.unique(original[at], return_inverse=True)
            copies = (which[at] == one for one in range(3 if three else 2))
            pairs = tuple((_span(at[one]), _span(places[one])) for one in copies)
            groups.append(_Group(tuple(range(draw, draw + (3 if three else 1))), found, pairs))
    return tuple(groups)


@lru_cache(maxsize=64)
def _alone(runs: Runs, begin: int, end: int) -> Indices:
    """Return the indices from ``begin`` up to ``end``, counted from ``begin``, of elements that have no copy."""
    _, _, number = _copies(runs)
    return _span(np.flatnonzero(number[begin:end] == 1))


def _span(indices: Array) -> Indices:
    """Return a slice if the indices follow each other, because it is copied faster; else the indices."""
    begin, size = (int(indices[0]) if len(indices) else 0), len(indices)
    return slice(begin, begin + size) if np.array_equal(indices, np.arange(begin, begin + size)) else indices
