"""Computes random factors for copies of elements; their mean over all copies is 1, so that sums stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

from .regions import Array, Box

__all__ = ["noisy_factors"]

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64 (https://doi.org/10.1145/2660193.2660195)."""


def noisy_factors(
    shape: Sequence[int], box: Box, dim: int, runs: tuple[tuple[int, int], ...], by: float, seed: int
) -> Array:
    """Return the factors of the elements in ``box`` of a tensor with this shape, in double precision.

    ``runs`` are ranges of indices: together, they give for each index along ``dim`` the index of the element of which
    it is a copy. Each factor is 1 plus a random number from -by to by, minus the mean of these numbers over all copies;
    it is 1 if there is no other copy. A factor depends only on the place of the element in the tensor, not on ``box``.
    """
    most = max(1, _AT_ONCE // max(1, prod(end - begin for begin, end in box[1:])))
    begin, end = box[0]
    parts = [
        _part(shape, ((first, min(first + most, end)), *box[1:]), dim, runs, by, seed)
        for first in range(begin, max(end, begin + 1), most)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


_AT_ONCE = 1 << 15
"""How many factors are computed at once. Larger parts do not fit in a core's cache, and take three times as long."""


def _part(shape: Sequence[int], box: Box, dim: int, runs: tuple[tuple[int, int], ...], by: float, seed: int) -> Array:
    original, rank, number = (one[slice(*box[dim])] for one in _copies(runs))
    last = max(end for _, end in runs)
    sizes = [last if at == dim else size for at, size in enumerate(shape)]
    along = [original if at == dim else np.arange(*span) for at, span in enumerate(box)]
    places = np.zeros((1,) * len(box), np.uint64)
    for at, indices in enumerate(along):
        step = np.uint64(prod(sizes[at + 1 :]))
        places = places + (indices.astype(np.uint64) * step).reshape(_only(at, len(box)))
    rank, number = rank.reshape(_only(dim, len(box))), number.reshape(_only(dim, len(box)))
    found = np.zeros(places.shape)
    for copy in range(int(number.max(initial=0))):  # its random number counts for it, and in the mean of all
        counts = (rank == copy) - (copy < number) / number
        found += _uniform(places + np.uint64(copy * prod(sizes) % 2**64), seed) * counts
    found *= by
    found += 1.0
    return found


def _only(at: int, dims: int) -> tuple[int, ...]:
    return (1,) * at + (-1,) + (1,) * (dims - at - 1)


@lru_cache(maxsize=8)
def _copies(runs: tuple[tuple[int, int], ...]) -> tuple[Array, Array, Array]:
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


def _uniform(places: Array, seed: int) -> Array:
    """Return a random number from -1 to 1 for each index in ``places``: SplitMix64 of index and seed."""
    mixed = places * np.uint64(_STEP)
    mixed += np.array(seed, np.uint64)
    for shift, times in ((30, _FIRST), (27, _SECOND)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(times)
    mixed ^= mixed >> np.uint64(31)
    mixed >>= np.uint64(11)
    found: Array = mixed.astype(np.float64)
    found *= 2.0**-52
    found -= 1.0
    return found
