"""Describes how rows of a tensor are ordered in another one: in groups, as halves or pairs of heads, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Region", "indices_text", "operations_for_order", "region_of"]

Positions = npt.NDArray[np.int64]
MOST = 32_768
"""The largest number of blocks of rows that an operation lists; channels of large models have fewer."""


@dataclass(frozen=True)
class Region:
    """Rows in ``groups`` runs of ``size`` rows; the first run begins at ``begin``, and runs are equally far apart."""

    groups: int
    begin: int
    size: int


def region_of(positions: Positions, number: int) -> Region | None:
    """Return the region that ``positions`` (in any order) form among ``number`` rows; None if they form no region."""
    rows = np.sort(positions)
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    groups = len(starts)
    if not groups or len(rows) % groups or number % groups:
        return None
    size, step = len(rows) // groups, number // groups
    begin = int(rows[0])
    wanted = (begin + np.arange(groups)[:, None] * step + np.arange(size)).reshape(-1)
    return Region(groups, begin, size) if begin + size <= step and np.array_equal(rows, wanted) else None


def operations_for_order(order: Positions, dim: int = 0) -> list[tuple[str, tuple[tuple[str, Any], ...]]] | None:
    """Return the operations (verb, fields) that put rows into ``order``: row i of the result is row ``order[i]``.

    If ``halves`` or ``pairs`` fit for several numbers of heads, the smallest is chosen. Returns None if rows would
    have to be listed in more than ``MOST`` blocks.
    """
    number = len(order)
    if np.array_equal(order, np.arange(number)):
        return []
    if dim == 0:
        for heads in _divisors(number):
            for verb, made in (("halves", _halves(number, heads)), ("pairs", _pairs(number, heads))):
                if np.array_equal(order, made):
                    return [(verb, (("heads", heads),))]
    block = _block(order)
    if number // block > MOST:
        return None
    fields: list[tuple[str, Any]] = [("indices", indices_text(order[::block] // block))]
    fields += [("dim", dim)] if dim else []
    return [("take", (*fields, *((("block", block),) if block > 1 else ())))]


def _divisors(number: int) -> Iterator[int]:
    """Yield the possible numbers of heads: each head has an even number of rows, at least four."""
    yield from (heads for heads in range(1, number // 4 + 1) if number % (2 * heads) == 0)


def _halves(number: int, heads: int) -> Positions:
    return np.arange(number).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _pairs(number: int, heads: int) -> Positions:
    return np.arange(number).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _block(order: Positions) -> int:
    """Return the largest size of blocks that stay in one piece and begin at multiples of it: 4 for 4,5,6,7,0,1,2,3."""
    starts = np.flatnonzero(np.diff(order, prepend=-2) != 1)
    block = len(order)
    for number in (*map(int, starts), *map(int, order[starts])):
        block = gcd(block, number)
    return block


def indices_text(indices: Positions) -> str:
    """Return indices as users write them, with ranges such as ``0..3``."""
    starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
    ends = np.append(starts[1:], len(indices)) - 1
    pairs = zip(indices[starts].tolist(), indices[ends].tolist(), strict=True)
    return ",".join(str(first) if first == last else f"{first}..{last}" for first, last in pairs)
