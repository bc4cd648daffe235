"""Exact thresholds by magnitude for a tensor of any size, and masks of the values beyond them.

Without their sign, floats have the same order as their bits read as integers; NaN comes last. So the values are counted
by their upper 16 bits. The counts show the upper 16 bits of the k-th value. The values that begin with these bits are
counted by their next 16 bits, and so on: two passes for float32. If only some of the values that equal the k-th value
are selected, these are the first of them; one more pass finds them. The values of a small tensor are sorted instead, in
one pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from threading import Lock

import numpy as np

from ....tensors.ops.regions import Array
from .._slices import Slice, Tensors, on_host, pieces

__all__ = ["MagnitudeCut", "MagnitudeRank", "cuts", "trivial"]

# The threshold of the largest or smallest magnitudes of a tensor.


@dataclass(frozen=True)
class MagnitudeRank:
    """How many magnitudes to select: the ``count`` largest, or smallest, of one of the compared arrays.

    ``quantity`` is the index of that array. Of equal magnitudes, the first are selected.
    """

    quantity: int
    count: int
    largest: bool = True


@dataclass(frozen=True)
class MagnitudeCut:
    """The threshold that selects magnitudes above ``value`` or, if not ``largest``, magnitudes below ``value``.

    Values that equal ``value`` are selected if their piece begins before ``place``. In the piece that begins at
    ``place``, only the first ``quota`` of these values are selected. (The merge has the same pieces as the counting.) A
    NaN counts as larger than any number. It does not matter which NaN are selected, since NaN times zero stays NaN.
    """

    value: float
    largest: bool
    place: float = math.inf
    quota: int = 0

    def holds(self, at: Slice, magnitudes: Array) -> Array:
        """Return a mask of the selected elements; ``magnitudes`` are all magnitudes of the piece ``at``."""
        if at.offset < self.place:
            return self._reaches(magnitudes)
        mask: Array = magnitudes > self.value if self.largest else magnitudes < self.value
        if at.offset == self.place:
            equal = np.flatnonzero(on_host(magnitudes == self.value))
            end = int(equal[self.quota - 1]) + 1
            mask[:end] = self._reaches(magnitudes[:end])
        return mask

    def _reaches(self, magnitudes: Array) -> Array:
        if not self.largest:
            return ~(magnitudes > self.value)  # selects all if the value is NaN
        mask: Array = magnitudes >= self.value
        return mask


def trivial(rank: MagnitudeRank) -> MagnitudeCut:
    """Return a threshold that selects nothing if the rank's ``count`` is zero, and everything otherwise."""
    none = math.inf if rank.largest else -math.inf
    return MagnitudeCut(none, rank.largest, -1) if rank.count <= 0 else MagnitudeCut(-none, rank.largest)


Quantities = Callable[[Slice], Sequence[Array]]
"""A function that returns the arrays of a piece whose magnitudes are compared; their signs are ignored."""

_BINS = 1 << 16
"""The number of different patterns of 16 bits."""
FEW = 1 << 14
"""Up to this many values, sorting is faster than counting."""
_WIDE = 1 << 18
"""How many elements are counted at once; with fewer, it would take longer to add up the counts."""


@dataclass
class _RankSearch:
    """A search for the value at a rank of the sorted magnitudes, 16 bits at a time.

    ``bits`` are the leading bits of the value that are known so far. ``index`` is the value's index among the sorted
    values that begin with ``bits``. ``alike`` is the number of values that begin with ``bits``.
    """

    rank: MagnitudeRank
    index: int
    bits: int = 0
    alike: int = 0

    def find(self, values: Array) -> None:
        """Find all bits of the searched value at once; ``values`` are the bits of all values, as integers."""
        self.bits = int(np.partition(values, self.index)[self.index])
        self.index -= int(np.count_nonzero(values < self.bits))
        self.alike = int(np.count_nonzero(values == self.bits))

    def follow(self, counts: Array) -> None:
        """Find the next 16 bits of the value.

        ``counts`` has, for each of the 65,536 patterns of 16 bits, how many values continue ``bits`` with this pattern.
        """
        ends = np.cumsum(counts)
        found = int(np.searchsorted(ends, self.index, side="right"))
        self.index -= int(ends[found] - counts[found])
        self.bits, self.alike = self.bits << 16 | found, int(counts[found])

    @property
    def wanted(self) -> int:
        """How many of the values that equal the threshold are selected."""
        return self.alike - self.index if self.rank.largest else self.index + 1


@dataclass
class _BitCounts:
    """For each pattern of 16 bits: how many values of an array begin with ``bits`` and continue with this pattern.

    ``quantity`` is the index of the array. Such counts narrow down the value with a given rank, 16 bits at a time.
    """

    quantity: int
    bits: int
    of: Array = field(default_factory=lambda: np.zeros(_BINS, np.int64))


def cuts(
    tensors: Tensors,
    quantities: Quantities,
    ranks: Sequence[MagnitudeRank],
    *,
    columns: int | None = None,
    settle: bool = True,
) -> list[MagnitudeCut]:
    """Return the threshold of magnitudes for each rank in ``ranks``; a rank says how many values to select.

    ``quantities`` returns the arrays of a piece whose magnitudes are compared. The tensors are read several times, in
    pieces; no piece ends within a row of ``columns`` values. With ``settle``, exactly as many values are selected as
    the rank says. Without it, all values that equal the threshold are selected as well.
    """
    total = math.prod(tensors.shape)
    searches = {
        number: _RankSearch(rank, total - rank.count if rank.largest else rank.count - 1)
        for number, rank in enumerate(ranks)
        if 0 < rank.count < total
    }
    width = _descend(tensors, quantities, list(searches.values()), columns) if searches else 0
    values = {number: _float(search.bits, width) for number, search in searches.items()}
    # Among values that are zero, or NaN, it does not matter which are selected.
    settled = [number for number, value in values.items() if settle and value and not math.isnan(value)]
    tied = [number for number in settled if searches[number].wanted < searches[number].alike]
    ends = _ends(tensors, quantities, [(searches[number], values[number]) for number in tied], columns)
    places = dict(zip(tied, ends, strict=True))
    return [
        MagnitudeCut(values[number], rank.largest, *places.get(number, ())) if number in values else trivial(rank)
        for number, rank in enumerate(ranks)
    ]


def _float(bits: int, width: int) -> float:
    return float(np.array(bits, f"<u{width}").view(f"<f{width}"))


def _descend(tensors: Tensors, quantities: Quantities, searches: Sequence[_RankSearch], columns: int | None) -> int:
    """Find the value that each search looks for, and store its bits in the search.

    Returns the number of bytes of each value (4 for float32).
    """
    if math.prod(tensors.shape) <= FEW:
        return _sort(tensors, quantities, searches, columns)
    width, level = 4, 0
    while level < width // 2:
        groups = {(one.rank.quantity, one.bits): _BitCounts(one.rank.quantity, one.bits) for one in searches}
        width = _count(tensors, quantities, list(groups.values()), level, columns)
        for one in searches:
            one.follow(groups[one.rank.quantity, one.bits].of)
        level += 1
    return width


def _sort(tensors: Tensors, quantities: Quantities, searches: Sequence[_RankSearch], columns: int | None) -> int:
    """Find the value that each search looks for, by sorting, and store its bits in the search.

    Returns the number of bytes of each value. For a tensor of few values, sorting is faster than counting.
    """

    def look(at: Slice) -> list[list[Array]]:
        return [[_bits(quantity) for quantity in quantities(piece)] for piece in pieces(at, _WIDE, columns)]

    found = list(chain.from_iterable(tensors.map(look)))
    together = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    for one in searches:
        one.find(together[one.rank.quantity])
    return together[0].itemsize


def _bits(values: Array) -> Array:
    """Return the bits of values without their signs, as integers."""
    host = np.ascontiguousarray(on_host(values)).reshape(-1)
    kind = np.dtype(f"<u{host.itemsize}")
    bits: Array = host.view(kind) & kind.type((1 << 8 * host.itemsize - 1) - 1)
    return bits


def _count(
    tensors: Tensors, quantities: Quantities, groups: Sequence[_BitCounts], level: int, columns: int | None
) -> int:
    """Count the next 16 bits of the values of each group, in its field ``of``.

    Returns the number of bytes of each value (4 for float32).
    """
    lock = Lock()

    def look(at: Slice) -> int:
        found: list[list[Array]] = [[] for _ in groups]
        width = 0
        for piece in pieces(at, _WIDE, columns):
            lanes = [_lanes(quantity) for quantity in quantities(piece)]
            width = lanes[0].shape[1] * 2
            for group, parts in zip(groups, found, strict=True):
                following = _following(lanes[group.quantity], group.bits, level)
                parts.append(np.bincount(following, minlength=_BINS) if not level else following)
        for group, parts in zip(groups, found, strict=True):
            counts = sum(parts) if not level else np.bincount(np.concatenate(parts), minlength=_BINS)
            with lock:
                group.of += counts
        return width

    return max(tensors.map(look))


def _lanes(values: Array) -> Array:
    """Return the bits of values as 16-bit integers, the lowest bits first: an array (number of values, 2 or 4)."""
    host = np.ascontiguousarray(on_host(values))
    return host.view("<u2").reshape(-1, host.itemsize // 2)


def _following(lanes: Array, bits: int, level: int) -> Array:
    """Return the 16 bits that follow ``bits`` in each value that begins with ``bits``; sign bits are ignored.

    ``lanes`` has a row for each value: its parts of 16 bits, the lowest first. ``level`` is the number of parts of
    which ``bits`` consists; if it is 0, all values match.
    """
    top: Array = lanes[:, -1]
    if not level:
        return top & 0x7FFF
    shared = (top & 0x7FFF) == bits >> 16 * (level - 1)
    for depth in range(1, level):
        shared &= lanes[:, -1 - depth] == (bits >> 16 * (level - 1 - depth)) & 0xFFFF
    following: Array = lanes[:, -1 - level][shared]
    return following


def _ends(
    tensors: Tensors, quantities: Quantities, tied: Sequence[tuple[_RankSearch, float]], columns: int | None
) -> list[tuple[float, int]]:
    """Return, for each search in ``tied``, the end of the selection among the values that equal its threshold.

    ``tied`` has pairs of a search and its threshold. Only the first few of the equal values are selected. An element of
    the result is (offset of the piece with the last selected value, number of equal values selected in that piece).
    """
    if not tied:
        return []

    def look(at: Slice) -> list[tuple[int, list[int]]]:
        seen = []
        for piece in pieces(at, columns=columns):
            made = quantities(piece)
            equal = [abs(made[search.rank.quantity]) == value for search, value in tied]
            seen.append((piece.offset, [int(at.xp.count_nonzero(one)) for one in equal]))
        return seen

    counted = list(chain.from_iterable(tensors.map(look)))
    ends = []
    for number, (search, _) in enumerate(tied):
        before = np.cumsum([0, *(counts[number] for _, counts in counted)])
        last = int(np.searchsorted(before, search.wanted)) - 1
        ends.append((float(counted[last][0]), search.wanted - int(before[last])))
    return ends
