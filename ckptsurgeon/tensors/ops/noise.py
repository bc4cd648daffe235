"""Computes random factors for copies of elements; their mean over all copies is 1, so that sums stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from .casts import cast
from .regions import Array, Box, box_shape

__all__ = ["noisy_factors", "with_noise"]

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64 (https://doi.org/10.1145/2660193.2660195)."""


Runs = tuple[tuple[int, int], ...]
"""Ranges of indices: together, they give for each index along a dimension the index of the element it is a copy of."""


def with_noise(
    values: Array, dtype: str, shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int
) -> Array:
    """Return the part ``box`` of a tensor multiplied by its factors in double precision, then rounded to ``dtype``.

    ``values`` are the stored values of this part. The other arguments are those of ``noisy_factors``.
    """
    found = np.empty_like(values)
    for part in _parts(box):
        rows = slice(part[0][0] - box[0][0], part[0][1] - box[0][0])
        wide = cast(values[rows], dtype, "float64")[0]
        found[rows] = cast(wide * _part(shape, part, dim, runs, by, seed), "float64", dtype)[0]
    return found


def noisy_factors(shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int) -> Array:
    """Return the factors of the elements in ``box`` of a tensor with this shape, in double precision.

    Each factor is 1 plus a random number from -by to by, minus the mean of the random numbers of all copies of the
    element. The ``runs`` determine the copies along ``dim``. If an element has no other copy, its factor is 1. A factor
    depends only on the position of the element in the tensor, not on ``box``.
    """
    return np.concatenate([_part(shape, part, dim, runs, by, seed) for part in _parts(box)])


def _parts(box: Box) -> list[Box]:
    """Return parts of ``box`` along its first dimension that are computed one after the other."""
    most = max(1, _AT_ONCE // max(1, prod(end - begin for begin, end in box[1:])))
    begin, end = box[0]
    return [((first, min(first + most, end)), *box[1:]) for first in range(begin, max(end, begin + 1), most)]


_AT_ONCE = 1 << 15
"""How many elements are computed at once. Larger parts do not fit in a core's cache, and take three times as long."""


def _part(shape: Sequence[int], box: Box, dim: int, runs: Runs, by: float, seed: int) -> Array:
    copies = _copies_within(runs, *box[dim])
    numbers = _numbers(shape, box, dim, runs, copies, seed)
    number = copies.number.reshape(_only(dim, len(box)))
    if copies.ranks is None:
        return _factors(numbers, copies.rank.reshape(number.shape), number, by)
    found = np.empty(box_shape(box))
    for rank, (into, places) in enumerate(copies.ranks):
        own = _factors(numbers, rank, number, by)
        found[(slice(None),) * dim + (into,)] = own[(slice(None),) * dim + (places,)]
    return found


def _numbers(shape: Sequence[int], box: Box, dim: int, runs: Runs, copies: _Copies, seed: int) -> list[Array]:
    """Return arrays with random numbers: for the first copy of each element in ``box``, for the second, and so on."""
    sizes = [max(end for _, end in runs) if at == dim else size for at, size in enumerate(shape)]
    along = [copies.originals if at == dim else np.arange(*span) for at, span in enumerate(box)]
    places = np.zeros((1,) * len(box), np.uint64)
    for at, indices in enumerate(along):
        step = np.uint64(prod(sizes[at + 1 :]))
        places = places + (indices.astype(np.uint64) * step).reshape(_only(at, len(box)))
    places *= np.uint64(_STEP)
    most = int(copies.number.max(initial=1))
    return [_uniform(places + np.uint64((copy * prod(sizes) * _STEP + seed) % 2**64)) for copy in range(most)]


def _factors(numbers: Sequence[Array], rank: Array | int, number: Array, by: float) -> Array:
    """Return the factors of copies; each is the copy with the index ``rank`` of an element with ``number`` copies."""
    found: Array | None = None
    for copy, own in enumerate(numbers):  # the random number of a copy, minus the mean of all its element's copies
        counted = own * ((rank == copy) - (copy < number) / number)
        found = counted if found is None else np.add(found, counted, out=found)
    assert found is not None
    found *= by
    found += 1.0
    return found


def _only(at: int, dims: int) -> tuple[int, ...]:
    return (1,) * at + (-1,) + (1,) * (dims - at - 1)


@lru_cache(maxsize=8)
def _copies(runs: Runs) -> tuple[Array, Array, Array]:
    """Return three arrays with an entry for each index along the dimension; each index is a copy of an original index.

    The entries are the original index, how many copies of it come before this one, and how many copies it has in all.
    """
    original = np.concatenate([np.arange(begin, end) for begin, end in runs])
    order = np.argsort(original, kind="stable")
    number = np.bincount(original)
    first = np.cumsum(number) - number
    rank = np.empty_like(original)
    rank[order] = np.arange(len(original)) - first[original[order]]
    return original, rank, number[original]


@dataclass(frozen=True)
class _Copies:
    """The elements of which the indices in a range are copies; ``originals`` lists each of these elements once.

    ``number`` has the number of all copies of each element. If no element occurs twice in the range, ``originals`` are
    in its order, ``rank`` has how many copies come before each index, and ``ranks`` is None. Otherwise ``ranks`` has,
    for each rank, the indices of the range with this rank, and the positions of their elements in ``originals``.
    """

    originals: Array
    number: Array
    rank: Array
    ranks: Sequence[tuple[Array | slice, Array | slice]] | None


@lru_cache(maxsize=64)
def _copies_within(runs: Runs, begin: int, end: int) -> _Copies:
    """Return the copies at the indices from ``begin`` up to, but not including, ``end``."""
    original, rank, number = (one[begin:end] for one in _copies(runs))
    found, first, places = np.unique(original, return_index=True, return_inverse=True)
    if len(found) == len(original):
        return _Copies(original, number, rank, None)
    each = (np.flatnonzero(rank == one) for one in range(int(rank.max()) + 1))
    return _Copies(found, number[first], rank, [(_span(own), _span(places[own])) for own in each])


def _span(indices: Array) -> Array | slice:
    """Return a slice if the indices follow each other, because it is copied faster; else the indices."""
    begin, size = (int(indices[0]) if len(indices) else 0), len(indices)
    return slice(begin, begin + size) if np.array_equal(indices, np.arange(begin, begin + size)) else indices


def _uniform(mixed: Array) -> Array:
    """Return a random number from -1 to 1 for each index: SplitMix64 of index and seed.

    ``mixed`` has, for each index, its product with ``_STEP`` plus the seed; it is changed in place.
    """
    for shift, times in ((30, _FIRST), (27, _SECOND)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(times)
    mixed ^= mixed >> np.uint64(31)
    mixed >>= np.uint64(11)
    found: Array = mixed.astype(np.float64)
    found *= 2.0**-52
    found -= 1.0
    return found
