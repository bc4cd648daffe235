"""Which units can be the same, by their leaves and shapes alone: asked of kinds of units, of which there are few."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .units import Unit

__all__ = ["Fitting", "fits"]


def fits(a: Unit, b: Unit) -> bool:
    """Whether two units can be the same: as many numbers, some in common, and the same leaves and shapes there."""
    common = [index for index in b.makes if index in a.makes]
    return bool(common) and all(a.makes[index] == b.makes[index] for index in common)


class _Kinds:
    """The units of one side, those of the same numbers, leaves and shapes as one kind; what is taken goes."""

    def __init__(self, units: Iterable[Unit]) -> None:
        numbers: dict[frozenset[object], int] = {}
        self.of: dict[Unit, int] = {}
        self.free: list[dict[Unit, None]] = []
        self.items: list[frozenset[object]] = []
        for unit in units:
            made = frozenset((index, frozenset(leaves.items())) for index, leaves in unit.makes.items())
            if made not in numbers:
                numbers[made] = len(numbers)
                self.free.append({})
                self.items.append(made)
            self.of[unit] = numbers[made]
            self.free[self.of[unit]][unit] = None

    def take(self, unit: Unit) -> None:
        del self.free[self.of.pop(unit)][unit]


class Fitting:
    """The units that are free on both sides, and which of them fit which."""

    def __init__(self, first: Iterable[Unit], second: Iterable[Unit]) -> None:
        self._first, self._second = _Kinds(first), _Kinds(second)
        self._options: list[list[int]] = [[] for _ in self._second.free]
        for a, b in self._near():
            one, other = next(iter(self._first.free[a])), next(iter(self._second.free[b]))
            if fits(one, other):
                self._options[b].append(a)

    def _near(self) -> Iterator[tuple[int, int]]:
        """Yield the kinds that have a module in common, without which nothing fits."""
        having: dict[object, list[int]] = defaultdict(list)
        for kind, items in enumerate(self._first.items):
            for item in items:
                having[item].append(kind)
        for kind, items in enumerate(self._second.items):
            yield from ((a, kind) for a in sorted({a for item in items for a in having.get(item, ())}))

    @property
    def first(self) -> list[Unit]:
        """The free units of the first side, in their order."""
        return list(self._first.of)

    @property
    def second(self) -> list[Unit]:
        """The free units of the second side, in their order."""
        return list(self._second.of)

    def free(self, a: Unit, b: Unit) -> bool:
        """Whether neither of two units is taken."""
        return a in self._first.of and b in self._second.of

    def take(self, a: Unit, b: Unit) -> None:
        """Take two units away."""
        self._first.take(a)
        self._second.take(b)

    def only_ones(self) -> Iterator[tuple[Unit, Unit]]:
        """Yield pairs that fit nothing else on either side."""
        options = [[a for a in kinds if self._first.free[a]] for kinds in self._options]
        wanted: dict[int, int] = defaultdict(int)
        for b, kinds in enumerate(options):
            for a in kinds:
                wanted[a] += len(self._second.free[b])
        for b, kinds in enumerate(options):
            if len(self._second.free[b]) == len(kinds) == 1 == len(self._first.free[kinds[0]]) == wanted[kinds[0]]:
                yield next(iter(self._first.free[kinds[0]])), next(iter(self._second.free[b]))

    def equals(self) -> Iterator[tuple[list[Unit], list[Unit]]]:
        """Yield the groups of units between which shapes do not decide, those of the second by what fits them."""
        groups: dict[tuple[int, ...], list[Unit]] = defaultdict(list)
        for unit, kind in self._second.of.items():
            groups[tuple(a for a in self._options[kind] if self._first.free[a])].append(unit)
        for kinds, there in groups.items():
            yield sorted((unit for a in kinds for unit in self._first.free[a]), key=_order), sorted(there, key=_order)

    def islands(self) -> Iterator[tuple[list[Unit], list[Unit]]]:
        """Yield the free units in parts: nothing of one fits anything of another."""
        part = list(range(len(self._first.free)))
        for kinds in self._options:
            joined = {part[a] for a in kinds}
            if len(joined) > 1:
                part = [min(joined) if number in joined else number for number in part]
        parts: dict[int, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
        for unit, kind in self._first.of.items():
            parts[part[kind]][0].append(unit)
        for unit, kind in self._second.of.items():
            if self._options[kind]:
                parts[part[self._options[kind][0]]][1].append(unit)
        yield from (both for both in parts.values() if both[0] and both[1])

    def mask(self, here: Sequence[Unit], there: Sequence[Unit]) -> npt.NDArray[np.bool_]:
        """Return which of some free units fit which, (here, there)."""
        table = np.zeros((len(self._first.free), len(self._second.free)), bool)
        for b, kinds in enumerate(self._options):
            table[kinds, b] = True
        return table[np.ix_([self._first.of[a] for a in here], [self._second.of[b] for b in there])]


def _order(unit: Unit) -> int:
    return unit.order
