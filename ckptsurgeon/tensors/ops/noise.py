"""Computes random factors for copies of elements; their mean over all copies is 1, so that sums stay the same.

Two copies get opposite noise, so one random number serves both. If the number of copies is odd, each of the
last three has a random number: its noise is three quarters of the difference between this number and the mean of all
three. A random number depends on the seed and on the position of the element, so threads may compute any part of a
tensor in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeAlias

import numpy as np

from ..dtypes import DTYPES
from .casts import CACHED, cast
from .mixed_numbers import random_halves, random_words
from .regions import Array, Box, box_shape

__all__ = ["noisy_factors", "with_noise"]

Runs: TypeAlias = tuple[tuple[int, int], ...]
"""Ranges (begin, end) of original indices, one after the other along a dimension.

For example, ((0, 2), (1, 3)) means that the four indices are copies of the original indices 0, 1, 1 and 2.
"""


def with_noise(
    values: Array, dtype: str, shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int
) -> Array:
    """Return the part ``box`` of a tensor multiplied by its factors, then rounded to ``dtype``.

    ``values`` are the stored values of this part. The other arguments are the same as for ``noisy_factors``. If
    ``dtype`` has 16 bits or fewer, products are computed in single precision, with random numbers of 16 bits: rounding
    to ``dtype`` is coarser than these. For wider dtypes, they are computed in double precision, with random numbers of
    32 bits.
    """
    wide = "float32" if DTYPES[dtype].bits <= 16 else "float64"
    noise, found = _Noise.of(shape, box, dim, runs, by, seed, wide), np.empty_like(values)
    for part in _parts(box):
        rows = slice(part[0][0] - box[0][0], part[0][1] - box[0][0])
        factors = noise.factors(part)
        factors *= cast(values[rows], dtype, wide)[0]
        found[rows] = cast(factors, wide, dtype)[0]
    return found


def noisy_factors(
    shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int, wide: str = "float64"
) -> Array:
    """Return the factors of the elements in ``box`` of a tensor with this shape, of the dtype ``wide``.

    Each factor is 1 plus noise from -by to by that sums to 0 over all copies of the element. The ``runs`` determine the
    copies along ``dim``. If an element has no other copy, its factor is 1. A factor depends only on the position of the
    element in the tensor, not on ``box``.
    """
    noise = _Noise.of(shape, box, dim, runs, by, seed, wide)
    return np.concatenate([noise.factors(part) for part in _parts(box)])


def _parts(box: Box) -> list[Box]:
    """Return parts of ``box`` along its first dimension that are computed one after the other."""
    most = max(1, CACHED // max(1, prod(end - begin for begin, end in box[1:])))
    begin, end = box[0]
    return [((first, min(first + most, end)), *box[1:]) for first in range(begin, max(end, begin + 1), most)]


@dataclass(frozen=True)
class _Noise:
    """Computes the factors of the elements in a box, part by part; data that all parts share are computed only once."""

    sizes: tuple[int, ...]
    dim: int
    runs: Runs
    by: float
    seed: int
    wide: str
    groups: tuple[_Group, ...]
    alone: Indices

    @classmethod
    def of(cls, shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int, wide: str) -> _Noise:
        """Return the noise of the elements in ``box``; the arguments are the same as for ``noisy_factors``."""
        sizes = tuple(max(end for _, end in runs) if at == dim else size for at, size in enumerate(shape))
        return cls(sizes, dim, runs, by, seed, wide, _groups(runs, *box[dim]), _alone(runs, *box[dim]))

    def factors(self, part: Box) -> Array:
        """Return the factors of the elements in a part of the box that is small enough for a core's cache."""
        groups, alone = self.groups, self.alone
        if not self.dim:  # the parts are along the dimension with the copies
            groups, alone = _groups(self.runs, *part[0]), _alone(self.runs, *part[0])
        found, before = np.empty(box_shape(part), self.wide), (slice(None),) * self.dim
        for group in groups:
            indices = [group.originals if at == self.dim else np.arange(*span) for at, span in enumerate(part)]
            draws = [self._drawn(indices, draw) for draw in group.draws]
            for (into, places), (how, noise) in zip(group.copies, _noises(draws), strict=True):
                _set(found, (*before, into), how, noise[(*before, places)])
        found[(*before, alone)] = 1.0
        return found

    def _drawn(self, indices: Sequence[Array], draw: int) -> Array:
        """Return random numbers from -by to by for the elements at ``indices`` along each dimension."""
        words = random_halves if self.wide == "float32" else random_words
        found = words(indices, self.sizes, self.seed, draw)
        numbers: Array = found.astype(self.wide)
        numbers *= self.by / 2.0 ** (8 * found.itemsize - 1)
        return numbers


def _noises(draws: Sequence[Array]) -> Iterator[tuple[np.ufunc, Array]]:
    """Yield, for each copy of an element, (operation, noise): its factor is 1 plus or minus the noise.

    The operation is ``np.add`` or ``np.subtract``. There are two copies if ``draws`` has one array of random numbers,
    three if it has three.
    """
    if len(draws) == 1:
        yield np.add, draws[0]
        yield np.subtract, draws[0]
        return
    quarter = np.add(np.add(draws[0], draws[1]), draws[2]) * 0.25
    for one in draws:  # three quarters of its difference from the mean: at most as large as the largest random number
        yield np.add, one * 0.75 - quarter


def _set(found: Array, at: tuple[Indices, ...], how: np.ufunc, noise: Array) -> None:
    """Set elements of an array to 1 plus noise, or 1 minus noise."""
    one = found.dtype.type(1)
    if all(isinstance(each, slice) for each in at):
        how(one, noise, out=found[at])
    else:
        found[at] = how(one, noise)


@lru_cache(maxsize=8)
def _copies(runs: Runs) -> tuple[Array, Array, Array]:
    """Return three arrays (original, rank, number) with an entry for each index along the dimension.

    Each index is a copy of an original index. The entries are this original index, how many of its copies come before
    this copy, and how many copies it has in all.
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
    """Elements that each have two copies, or each have three; ``originals`` are the indices of these elements.

    The copies of an element share random numbers: one number for two copies, three for three copies. ``draws`` are the
    arguments ``draw`` with which ``_Noise._drawn`` draws these numbers. ``copies`` has an item for the first copies,
    the second copies and perhaps the third copies: their indices, counted from the beginning of the range, and the
    positions in ``originals`` of the elements that they copy.
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
