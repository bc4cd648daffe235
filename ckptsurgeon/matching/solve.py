"""Decides which units of two state dicts are the same, the surest first, and never between equals.

What speaks for a pair, in this order: the same path; shapes that nothing else on either side has; names clearly nearer
to each other than to anything else; the same place among as many equals. What was decided about a pair's parents
speaks for its children, and narrows what is left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..keys import rules_for
from ..tensors import TensorInfo
from .names import Likeness
from .proposal import Match, Proposal
from .units import Unit, units_of

__all__ = ["propose"]

MARGIN = 0.1
"""How much nearer a name must be than the next nearest to decide."""
NEAR = 0.2
"""How near two names must be at all to decide."""
CONTEXT = 0.5
"""What it counts that parents were matched with each other."""


class _Matcher:
    def __init__(self, first: Mapping[str, TensorInfo], second: Mapping[str, TensorInfo]) -> None:
        self._source, self._destination = first, second
        self.first, self.second = units_of(first), units_of(second)
        self.matched: list[tuple[Unit, Unit, str]] = []
        self.parents: Counter[tuple[str, str]] = Counter()

    def run(self) -> None:
        """Match modules until nothing more can be decided; then what is left of them, in smaller units."""
        ways: list[Callable[[], Iterator[tuple[Unit, Unit, str]]]] = [self._only_one, self._by_name, self._by_order]
        for view in ("modules", "parts", "tensors"):
            self.first, self.second = (units_of(self._left(side), view) for side in (0, 1))
            self.likeness = Likeness([unit.path for unit in self.first], [unit.path for unit in self.second])
            self._take_all(self._same_path())
            while any(self._take_all(way()) for way in (ways if view != "tensors" else ways[1:2])):
                pass
        self.first, self.second = (units_of(self._left(side)) for side in (0, 1))

    def _left(self, side: int) -> dict[str, TensorInfo]:
        """Return the tensors of one side that nothing was decided about."""
        taken = {key for a, b, _ in self.matched for pair in _names(a, b).items() for key in pair[side : side + 1]}
        tensors = (self._source, self._destination)[side]
        return {key: info for key, info in tensors.items() if key not in taken}

    def _take_all(self, pairs: Iterator[tuple[Unit, Unit, str]]) -> bool:
        """Take pairs as long as both sides are free; returns whether there was one."""
        taken = False
        for a, b, why in list(pairs):
            if a in self.first and b in self.second:
                self.first.remove(a)
                self.second.remove(b)
                self.matched.append((a, b, why))
                self._remember(a.path, b.path)
                taken = True
        return taken

    def _remember(self, first: str, second: str) -> None:
        """Let the parents of a pair speak for what else is in them."""
        a, b = first.split("."), second.split(".")
        for up in range(1, max(len(a), len(b)) + 1):
            self.parents[".".join(a[:-up]), ".".join(b[:-up])] += 1

    def _same_path(self) -> Iterator[tuple[Unit, Unit, str]]:
        there = {unit.path: unit for unit in self.second}
        for unit in self.first:
            other = there.get(unit.path)
            if other is not None and fits(unit, other):
                yield unit, other, "same name"

    def _only_one(self) -> Iterator[tuple[Unit, Unit, str]]:
        """Yield pairs that fit nothing else on either side."""
        options = {id(b): [a for a in self.first if fits(a, b)] for b in self.second}
        number = Counter(id(a) for found in options.values() for a in found)
        for b in self.second:
            found = options[id(b)]
            if len(found) == 1 and number[id(found[0])] == 1:
                yield found[0], b, "shape"

    def _by_name(self) -> Iterator[tuple[Unit, Unit, str]]:
        """Yield the pair of units that are clearly nearest to each other, the nearest first, one at a time."""
        best: list[tuple[float, Unit, Unit]] = []
        for b in self.second:
            ranked = self._ranked(b, self.first, lambda a, b: self._score(a, b))
            if ranked is None:
                continue
            a, score = ranked
            back = self._ranked(a, self.second, lambda b, a: self._score(a, b))
            if back is not None and back[0] is b:
                best.append((score, a, b))
        for _, a, b in sorted(best, key=lambda one: -one[0])[:1]:
            yield a, b, "name"

    def _ranked(
        self, unit: Unit, others: Sequence[Unit], score: Callable[[Unit, Unit], float]
    ) -> tuple[Unit, float] | None:
        """Return the unit nearest to ``unit``, if it is clearly nearer than the next."""
        fitting = [other for other in others if fits(other, unit)]
        scores = sorted(((score(other, unit), i) for i, other in enumerate(fitting)), reverse=True)
        if not scores or scores[0][0] < NEAR or (len(scores) > 1 and scores[0][0] - scores[1][0] < MARGIN):
            return None
        return fitting[scores[0][1]], scores[0][0]

    def _score(self, a: Unit, b: Unit) -> float:
        return self.likeness(a.path, b.path) + CONTEXT * self._agreement(a.path, b.path)

    def _agreement(self, first: str, second: str) -> float:
        """Return how much of what was decided speaks for two units being in the same module, 0 to 1."""
        a, b = first.split("."), second.split(".")
        shared = 0.0
        for up_a in range(1, len(a) + 1):
            for up_b in range(1, len(b) + 1):
                if self.parents[".".join(a[:-up_a]), ".".join(b[:-up_b])] and (up_a < len(a) or up_b < len(b)):
                    shared = max(shared, 1.0 / max(up_a, up_b))
        return shared

    def _by_order(self) -> Iterator[tuple[Unit, Unit, str]]:
        """Yield pairs of as many equals on both sides of one matched module, in their order."""
        for here, there in self._classes():
            if 1 < len(here) == len(there) and self._together(here, there):
                yield from ((a, b, "order") for a, b in zip(here, there, strict=True))
                return

    def _classes(self) -> Iterator[tuple[list[Unit], list[Unit]]]:
        """Yield the groups of units between which shapes do not decide."""
        groups: dict[frozenset[int], list[Unit]] = defaultdict(list)
        for b in self.second:
            fitting = frozenset(id(a) for a in self.first if fits(a, b))
            groups[fitting].append(b)
        for members, there in groups.items():
            here = [a for a in self.first if id(a) in members]
            yield sorted(here, key=lambda u: u.order), sorted(there, key=lambda u: u.order)

    def _together(self, here: Sequence[Unit], there: Sequence[Unit]) -> bool:
        """Whether equals are numbered alike: those of one repeated layer have an order that means something."""
        return all(a.makes.keys() == here[0].makes.keys() for a in here) and all(
            "#" in unit.path for unit in (*here, *there)
        )


def fits(a: Unit, b: Unit) -> bool:
    """Whether two units can be the same: as many numbers, some in common, and the same leaves and shapes there."""
    common = [index for index in b.makes if index in a.makes]
    return bool(common) and all(a.makes[index] == b.makes[index] for index in common)


def propose(
    first: str, source: Mapping[str, TensorInfo], second: str, destination: Mapping[str, TensorInfo]
) -> Proposal:
    """Propose which tensors of ``source`` are which of ``destination``."""
    matcher = _Matcher(source, destination)
    matcher.run()
    names: dict[str, str] = {}
    for a, b, _ in matcher.matched:
        names.update(_names(a, b))
    names = {key: names[key] for key in source if key in names}
    taken = set(names.values())
    ambiguous = dict(_ambiguous(matcher))
    open_keys = {key for unit in matcher.second if _shown(unit.path) in ambiguous for key in unit.keys.values()}
    return Proposal(
        first,
        second,
        tuple(Match(_shown(a.path), _shown(b.path), len(_names(a, b)), why) for a, b, why in matcher.matched),
        names,
        tuple(rules_for({**{key: key for key in source}, **names})),
        ambiguous,
        {key: info for key, info in source.items() if key not in names},
        {key: info for key, info in destination.items() if key not in taken and key not in open_keys},
        len(open_keys),
    )


def _names(a: Unit, b: Unit) -> dict[str, str]:
    return {a.keys[place]: key for place, key in b.keys.items() if place in a.keys}


def _ambiguous(matcher: _Matcher) -> Iterator[tuple[str, tuple[str, ...]]]:
    for b in matcher.second:
        options = [_shown(a.path) for a in matcher.first if fits(a, b)]
        if options:
            yield _shown(b.path), tuple(options)


def _shown(path: str) -> str:
    """Return a path with names for its numbers: ``layers.{n}.self_attn``."""
    names = iter("nmkijl")
    return ".".join(f"{{{next(names, 'x')}}}" if part == "#" else part for part in path.split("."))
