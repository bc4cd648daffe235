"""Scores how similar the modules of two state dicts are, and updates the scores while pairs are matched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .module_groups import FreeUnits, Unit
from .names import Likeness

__all__ = ["Nearness", "Parents", "parents_of"]

MARGIN = 0.1
"""The partner of a module is ambiguous if its best and second best score differ by less than this."""
NEAR = 0.2
"""The smallest score of a pair that is matched by its names."""
CONTEXT = 0.5
"""The largest bonus that is added to the score of two modules inside two matched modules."""
CELLS = 1 << 24
"""The largest number of scores in one matrix (4,096 modules of each state dict); larger groups are not compared."""

Numbers = npt.NDArray[np.float64]
Parents = tuple[str, str]


def parents_of(path: str) -> list[str]:
    """Return the paths of the modules that contain a module, from the innermost to '' (the top level)."""
    parts = path.split(".")
    return [".".join(parts[:-up]) for up in range(1, len(parts) + 1)]


class _Side:
    """Modules of one state dict; for each, its most similar module in the other state dict, and its two best scores."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.at = {unit: position for position, unit in enumerate(units)}
        self.nearest = np.zeros(len(units), np.intp)
        self.score, self.next = np.full(len(units), -np.inf), np.full(len(units), -np.inf)
        self.stale = np.ones(len(units), bool)
        under: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for position, unit in enumerate(units):
            for up, parent in enumerate(parents_of(unit.path), 1):
                under[parent].append((position, up))
        self.under = {parent: np.array(found).T for parent, found in under.items()}

    def refresh(self, scores: Numbers) -> None:
        """Find the best partner of each module whose scores changed; ``scores`` has a row for each module."""
        rows = np.flatnonzero(self.stale)
        if rows.size:
            mine, order = scores[rows], np.arange(rows.size)
            self.nearest[rows] = best = mine.argmax(axis=1)
            self.score[rows] = mine[order, best]
            mine[order, best] = -np.inf
            self.next[rows] = mine.max(axis=1)
            self.stale[:] = False

    def clear(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the modules whose best score is at least ``NEAR``, and clearly above their second best."""
        near = self.score >= NEAR
        clearly: npt.NDArray[np.bool_] = np.where(near, self.score, 0) - self.next >= MARGIN
        return near & clearly


class _Block:
    """Modules of two state dicts that may correspond, with a matrix of scores for all pairs.

    The score of a pair is minus infinity if its shapes do not fit, or if one of the two modules is matched.
    """

    def __init__(self, here: Sequence[Unit], there: Sequence[Unit], likeness: Numbers) -> None:
        self.here, self.there = _Side(here), _Side(there)
        self.likeness, self.scores = likeness, likeness.copy()

    def agree(self, parents: Parents) -> None:
        """Increase the scores of pairs of modules inside two matched modules, most of all those of direct children.

        ``parents`` are the paths of the two matched modules, one in each state dict.
        """
        (rows, ups), (columns, others) = self.here.under[parents[0]], self.there.under[parents[1]]
        cells = np.ix_(rows, columns)
        raised = self.likeness[cells] + CONTEXT / np.maximum.outer(ups, others)
        self.scores[cells] = np.maximum(self.scores[cells], raised)
        self.here.stale[rows] = self.there.stale[columns] = True

    def take(self, a: Unit, b: Unit) -> None:
        """Set the scores of two matched modules to minus infinity, so that they get no other partner."""
        if a in self.here.at:
            row = self.here.at[a]
            self.there.stale |= self.scores[row] >= self.there.next
            self.likeness[row] = self.scores[row] = -np.inf
            self.here.stale[row] = True
        if b in self.there.at:
            column = self.there.at[b]
            self.here.stale |= self.scores[:, column] >= self.here.next
            self.likeness[:, column] = self.scores[:, column] = -np.inf
            self.there.stale[column] = True

    def mutual(self) -> Iterator[tuple[float, Unit, Unit]]:
        """Yield (score, first, second) for each pair of modules that are clearly each other's best partner."""
        self.here.refresh(self.scores)
        self.there.refresh(self.scores.T)
        back = self.there.nearest[self.here.nearest] == np.arange(len(self.here.units))
        for row in map(int, np.flatnonzero(self.here.clear() & self.there.clear()[self.here.nearest] & back)):
            yield float(self.here.score[row]), self.here.units[row], self.there.units[self.here.nearest[row]]


class Nearness:
    """The scores of all pairs of modules that are not matched yet.

    A score is the similarity of the names, plus a bonus if the modules are inside two matched modules (``agreed`` has
    the paths of matched modules). ``fitting`` has the unmatched modules, ``likeness`` compares their names. ``beyond``
    is the number of modules that are not compared, because too many have the same tensor names and shapes.
    """

    def __init__(self, fitting: FreeUnits, likeness: Likeness, agreed: Iterable[Parents]) -> None:
        self.beyond = 0
        self._blocks: list[_Block] = []
        self._block: dict[Unit, _Block] = {}
        for here, there in fitting.islands():
            if len(here) * len(there) > CELLS:
                self.beyond += len(there)
                continue
            near = likeness(here, there)
            block = _Block(here, there, np.where(fitting.mask(here, there), near, -np.inf))
            self._blocks.append(block)
            self._block.update(dict.fromkeys((*here, *there), block))
        self._above = self._parents(0), self._parents(1)
        for parents in agreed:
            self.agree(parents)

    def _parents(self, side: int) -> dict[str, set[int]]:
        """Return a mapping from each parent path to the indices of the blocks that have modules inside this path.

        ``side`` is 0 for the paths of the first state dict, 1 for the paths of the second.
        """
        found: dict[str, set[int]] = defaultdict(set)
        for number, block in enumerate(self._blocks):
            for parent in (block.here, block.there)[side].under:
                found[parent].add(number)
        return found

    def agree(self, parents: Parents) -> None:
        """Increase the scores of pairs of modules inside two matched modules, whose paths are ``parents``."""
        above, other = (self._above[side].get(parents[side], set()) for side in (0, 1))
        for number in above & other:
            self._blocks[number].agree(parents)

    def take(self, a: Unit, b: Unit) -> None:
        """Remove two matched modules from all comparisons."""
        for block in {id(one): one for unit in (a, b) if (one := self._block.get(unit))}.values():
            block.take(a, b)

    def mutual(self) -> list[tuple[Unit, Unit]]:
        """Return the pairs of modules that are clearly each other's best partner, the highest score first.

        Only pairs with nearly the highest score are returned. Call this again after they are matched: this may change
        the scores of other pairs.
        """
        found = sorted((pair for block in self._blocks for pair in block.mutual()), key=lambda one: -one[0])
        return [(a, b) for score, a, b in found if score > found[0][0] - MARGIN]
