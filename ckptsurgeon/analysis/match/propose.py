"""Decides which modules of two state dicts correspond, the most certain pairs first.

Two modules are matched by the first evidence that exists among the following: the same path; the same path except for
leading segments that changed for most of the model; shapes that no other module of either state dict has; names that
are clearly more similar to each other than to any other name. Modules are never matched if their names show that they
are different parts of a transformer block. A matched pair is evidence for its child modules, and leaves fewer
candidates for all other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ...planning.keys.infer_rules import rules_for, unspelled
from ...tensors.info import TensorInfo
from ...util.text import count
from .module_groups import FreeUnits, Unit, fits, units_of
from .names import Likeness, moved
from .nearness import Nearness, Parents, parents_of
from .parts import Parts, parts_of
from .proposal import Match, Proposal
from .set_aside import set_aside
from .transposed import transposed, transposed_note

__all__ = ["propose"]

_BEYOND = "the names of {} are not compared, because too many modules have the same shapes"

Pairs = Iterator[tuple[Unit, Unit, str]]


class _Matcher:
    """Matches the modules of two state dicts.

    ``parts`` has two mappings, one for each state dict: from a key to the parts of a transformer block that the key's
    module may be.
    """

    def __init__(
        self,
        first: Mapping[str, TensorInfo],
        second: Mapping[str, TensorInfo],
        parts: Sequence[Mapping[str, Parts]],
    ) -> None:
        self._source, self._destination, self._parts = first, second, parts
        self.matched: list[tuple[Unit, Unit, str]] = []
        self._agreed: dict[Parents, None] = {}
        self._near: Nearness | None = None
        self.beyond = 0

    def run(self) -> None:
        """Match groups of modules until no further pair is certain; then repeat this with smaller groups.

        ``units_of`` describes the groups.
        """
        ways: list[Callable[[], Pairs]] = [self._only_one, self._by_name]
        for view in ("modules", "parts", "tensors"):
            self._open(view)
            self._take_all(self._same_path())
            self._take_all(self._moved())
            while any(self._take_all(way()) for way in (ways if view != "tensors" else ways[1:2])):
                pass
            self.beyond = self._near.beyond if self._near is not None else 0
        self._open("modules")

    def _open(self, view: str) -> None:
        """Group the unmatched tensors. ``view`` is the kind of group, such as "modules": see ``units_of``."""
        self.fitting = FreeUnits(*(units_of(self._left(side), view, self._parts[side]) for side in (0, 1)))
        self._likeness = Likeness(self.fitting.first, self.fitting.second)
        self._near = None

    def _left(self, side: int) -> dict[str, TensorInfo]:
        """Return the unmatched tensors of the source (if ``side`` is 0) or of the destination (if ``side`` is 1)."""
        taken = {key for a, b, _ in self.matched for pair in _names(a, b).items() for key in pair[side : side + 1]}
        tensors = (self._source, self._destination)[side]
        return {key: info for key, info in tensors.items() if key not in taken}

    def _take_all(self, pairs: Pairs) -> bool:
        """Match each pair in which neither module is matched yet; return whether there was such a pair."""
        taken = False
        for a, b, why in list(pairs):
            if self.fitting.free(a, b):
                self._take(a, b)
                self.matched.append((a, b, why))
                taken = True
        return taken

    def _take(self, a: Unit, b: Unit) -> None:
        """Mark two modules as matched; increase the scores of other pairs of modules inside their parent modules."""
        self.fitting.take(a, b)
        if self._near is not None:
            self._near.take(a, b)
        for parents in _together(parents_of(a.path), parents_of(b.path)):
            if parents not in self._agreed:
                self._agreed[parents] = None
                if self._near is not None:
                    self._near.agree(parents)

    def _same_path(self) -> Pairs:
        there = {unit.path: unit for unit in self.fitting.second}
        for unit in self.fitting.first:
            other = there.get(unit.path)
            if other is not None and fits(unit, other):
                yield unit, other, "same name"

    def _moved(self) -> Pairs:
        """Yield the pairs of modules whose paths become equal by the change of prefix that fits most of the model."""
        yield from ((a, b, "prefix") for a, b in moved(self.fitting.first, self.fitting.second).items())

    def _only_one(self) -> Pairs:
        """Yield the pairs of modules that fit only each other, by part of a block, tensor names and shapes.

        The evidence is "name" if the names of both show which part of a block they are, else "shape".
        """
        yield from ((a, b, "name" if a.parts and b.parts else "shape") for a, b in self.fitting.only_ones())

    def _by_name(self) -> Pairs:
        """Yield the pairs of modules with clearly the most similar names, the most similar pair first."""
        if self._near is None:
            self._near = Nearness(self.fitting, self._likeness, self._agreed)
        yield from ((a, b, "name") for a, b in self._near.mutual())


def _together(first: Sequence[str], second: Sequence[str]) -> Iterator[Parents]:
    """Yield pairs of parents of two matched modules, from the innermost level to the outermost.

    ``first`` and ``second`` are the paths of the modules that contain the two matched modules; the last path of the
    shorter list is repeated. The pair of the two top levels is left out, because it is not evidence.
    """
    for up in range(max(len(first), len(second))):
        parents = (first[min(up, len(first) - 1)], second[min(up, len(second) - 1)])
        if parents != ("", ""):
            yield parents


def propose(
    first: str, source: Mapping[str, TensorInfo], second: str, destination: Mapping[str, TensorInfo]
) -> Proposal:
    """Propose which tensors of ``source`` and ``destination`` correspond, by names and shapes.

    ``first`` and ``second`` are the paths of the two checkpoints; they only appear in the result. Matrices whose names
    correspond, but which are transposed in one of the two, are not matched; a note says what to do.
    """
    parts = parts_of(source), parts_of(destination)
    turned = transposed(source, destination, parts)
    turned_there = set(turned.values())
    matcher = _Matcher(
        {key: info for key, info in source.items() if key not in turned},
        {key: info for key, info in destination.items() if key not in turned_there},
        parts,
    )
    matcher.run()
    names: dict[str, str] = {}
    evidence: dict[str, str] = {}
    for a, b, why in matcher.matched:
        names.update(_names(a, b))
        evidence.update(dict.fromkeys(_names(a, b), why))
    names = {key: names[key] for key in source if key in names}
    taken = set(names.values())
    ambiguous = dict(_ambiguous(matcher))
    units = [unit for unit in matcher.fitting.second if _shown(unit.path) in ambiguous]
    open_keys = {key for unit in units for key in unit.keys.values()}
    wanted, notes = set_aside(source, names, destination)
    rules = rules_for(wanted)
    notes += [_BEYOND.format(count(matcher.beyond, "module"))] if matcher.beyond else []
    notes += [transposed_note(turned, names, source)] if turned else []
    return Proposal(
        first,
        second,
        tuple(Match(_shown(a.path), _shown(b.path), len(_names(a, b)), why) for a, b, why in matcher.matched),
        names,
        tuple(rules),
        ambiguous,
        {key: info for key, info in source.items() if key not in names},
        {key: info for key, info in destination.items() if key not in taken and key not in open_keys},
        len(open_keys),
        (*notes, *unspelled(wanted, rules)),
        evidence,
        turned=turned,
        ambiguous_keys={_shown(unit.path): tuple(unit.keys.values()) for unit in units},
    )


def _names(a: Unit, b: Unit) -> dict[str, str]:
    return {a.keys[place]: key for place, key in b.keys.items() if place in a.keys}


def _ambiguous(matcher: _Matcher) -> Iterator[tuple[str, tuple[str, ...]]]:
    options: dict[Unit, tuple[str, ...]] = {}
    for here, there in matcher.fitting.equals():
        options |= dict.fromkeys(there, tuple(_shown(a.path) for a in here))
    yield from ((_shown(b.path), options[b]) for b in matcher.fitting.second if options[b])


def _shown(path: str) -> str:
    """Return a path with ``{n}``, ``{m}`` and so on in place of each ``#``, as in ``layers.{n}.self_attn``."""
    names = iter("nmkijl")
    return ".".join(f"{{{next(names, 'x')}}}" if part == "#" else part for part in path.split("."))
