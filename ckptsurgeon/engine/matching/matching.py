"""Weight matching of Git Re-Basin (https://arxiv.org/abs/2209.04836, algorithm 1): coordinate descent over groups.

A group is a set of units (channels, heads or experts) that may be reordered. The groups are visited one after the
other, in a fixed order. At each visit, the units of the group are put into the order with the largest sum of inner
products with the reference's tensors, while all other groups keep their order. The matching ends when no visit raises
the sum; nothing is drawn at random. The first visit of a group uses only tensors whose other axes were visited before,
because units along other axes still have an arbitrary order. If this makes the models less similar, the matching is
repeated with all tensors from the first visit on: then the sum cannot fall. A tensor with one group along two axes is
not used, because its similarity is not linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...planning.aligning.groups import Group, Order, Part, order_along, where
from ...tensors.composition import join, reshape, take
from ...tensors.info import TensorInfo
from ...tensors.ops.regions import Array
from ...util.text import human_bytes
from ..apply_settings import memory_error
from .assignment import assignment, solver, value_of
from .similarity import TensorPair, add_products, band_bytes, dot_products

__all__ = ["MatchedGroup", "match"]

SWEEPS = 100
"""The largest number of times that a group is visited."""
GAIN = 1e-5
"""A new order must raise the sum by more than this share of the sum: smaller gains may come from rounding."""

Orders: TypeAlias = dict[int, tuple[Array, Array]]


@dataclass(frozen=True)
class MatchedGroup:
    """A group of units (channels, heads or experts) after the matching: their order, and cosines of its tensors.

    ``before`` and ``after`` are the cosines between the tensors of both models, before and after the matching.
    ``order`` has, for each new position, the old index of the unit that moves there; ``shared`` has the same for query
    heads that share units.
    """

    group: Group
    order: Order
    shared: Order
    before: float
    after: float

    @property
    def moved(self) -> int:
        """How many units, or query heads, have a new position."""
        order = self.shared if self.group.sharing > 1 else self.order
        return sum(place != unit for place, unit in enumerate(order))


def match(reference: Checkpoint, model: Checkpoint, groups: Sequence[Group], memory: int) -> list[MatchedGroup]:
    """Return, for each group, the order of its units in which ``model`` is most similar to ``reference``.

    Units are channels, heads or experts. Raises PlanError for NaN or infinite values, and if ``memory``, in bytes, is
    too small for a matrix of similarities; ConfigError if scipy is not installed.
    """
    _check_memory(groups, memory)
    solver()  # before anything is read
    descent = _Descent(reference, model, groups, memory)
    descent.run(anchored=True)
    found = descent.results()
    if descent.gain < 0:
        descent = _Descent(reference, model, groups, memory)
        descent.run(anchored=False)
        found = descent.results()
    return found


def _check_memory(groups: Sequence[Group], memory: int) -> None:
    largest = max(groups, key=_matrix_bytes, default=None)
    needed = _matrix_bytes(largest) + band_bytes() if largest is not None else 0
    if largest is not None and needed > memory:
        raise memory_error(
            f"the similarities of {largest.units * largest.sharing} units ({largest}), and the tensors of which they "
            f"are computed, take {human_bytes(needed)} of memory, more than {human_bytes(memory)}.",
            needed,
        )


def _matrix_bytes(group: Group) -> int:
    """Return the bytes of memory for the similarities of all pairs of units of a group.

    If several query heads share a unit, the similarities of all pairs of query heads are included.
    """
    queries = group.units * group.sharing
    return 8 * sum(number * number for number in {group.units, queries})


class _Descent:
    """Aligns a model with the reference by coordinate descent; keeps the current order of the units of each group."""

    def __init__(self, reference: Checkpoint, model: Checkpoint, groups: Sequence[Group], memory: int) -> None:
        self._reference, self._model, self._groups, self._memory = reference, model, groups, memory
        self._places = where(groups)
        self._orders: Orders = {
            number: (np.arange(one.units), np.arange(one.units * one.sharing)) for number, one in enumerate(groups)
        }
        self._expert_of = {
            key: (number, unit)
            for number, group in enumerate(groups)
            for part in group.parts
            if len(part.keys) > 1
            for unit, key in enumerate(part.keys)
        }

        self.gain = 0.0
        """The increase of the sum of all inner products by the matching; ``results`` sets it."""

    def run(self, *, anchored: bool) -> None:
        """Visit all groups, at most ``SWEEPS`` times, until no visit raises the sum of inner products.

        If ``anchored``, the first visit of a group uses only tensors whose other axes were visited before.
        """
        linear = {number: self._linear(number) for number in self._orders}
        near = {number: self._near(number) for number in self._orders}
        visited: set[int] = set()
        due = set(self._orders)
        for _ in range(SWEEPS):
            if not due:
                return
            for number in sorted(due):
                parts = [part for part in linear[number] if not anchored or self._others(number, part) <= visited]
                is_all = number in visited or len(parts) == len(linear[number]) or not parts
                gained = self._visit(number, linear[number] if is_all else parts)
                if is_all:
                    due.discard(number)
                visited.add(number)
                if gained:
                    due |= near[number] & (visited | due)

    def _linear(self, number: int) -> list[Part]:
        """Return the parts of the group ``number`` that can be compared between the models.

        A part can be compared if both models have its tensors, and the group is along only one axis of each.
        """
        return [
            part
            for part in self._groups[number].parts
            if number not in self._others(number, part, with_itself=True) and all(map(self._is_shared, part.keys))
        ]

    def _is_shared(self, key: str) -> bool:
        """Return whether both models have the tensor ``key`` in the same shape.

        Tensors of other shapes, such as embeddings of other vocabularies, cannot be compared.
        """
        return key in self._reference and self._reference[key].shape == self._model[key].shape

    def _others(self, number: int, part: Part, *, with_itself: bool = False) -> set[int]:
        """Return the indices of the groups along the other axes of the tensors in ``part``.

        ``part`` is an axis of tensors along which the units of the group ``number`` lie. The group ``number`` itself is
        left out, unless ``with_itself`` is true.
        """
        dims = [
            (dim, one.group)
            for key in part.keys
            for dim, placed in self._places.get(key, {}).items()
            for one in placed
            if len(part.keys) > 1 or dim != part.dim
        ]
        return {group for _, group in dims if with_itself or group != number}

    def _near(self, number: int) -> set[int]:
        """Return the indices of the groups that share a tensor with the group ``number``."""
        found = set()
        for part in self._groups[number].parts:
            found |= self._others(number, part)
            for key in part.keys:
                if key in self._expert_of:
                    found.add(self._expert_of[key][0])
        return found - {number}

    def _visit(self, number: int, parts: Sequence[Part]) -> bool:
        """Put the units of a group into their best order; return whether the order changed."""
        group = self._groups[number]
        if not parts:
            return False
        units, queries = self._similarities(group, number, parts)
        order, shared = self._orders[number]
        found = _best(units, queries, group.sharing)
        old = value_of(units, order) + (value_of(queries, shared) if queries is not None else 0.0)
        new = value_of(units, found[0]) + (value_of(queries, found[1]) if queries is not None else 0.0)
        if new - old <= GAIN * max(abs(new), abs(old)):
            return False
        self._orders[number] = found if queries is not None else (found[0], found[0])
        return True

    def _similarities(self, group: Group, number: int, parts: Sequence[Part]) -> tuple[Array, Array | None]:
        size = group.units * group.sharing
        units = np.zeros((group.units, group.units))
        queries = np.zeros((size, size)) if group.sharing > 1 else None
        left = max(0, self._memory - _matrix_bytes(group))
        for part in parts:
            pair = self._pair(number, part)
            to = queries if queries is not None and part.is_shared else units
            add_products(to, pair, part.dim, part.begin, part.block, left)
        return units, queries

    def _pair(self, number: int, part: Part) -> TensorPair:
        """Return the pair of tensors whose inner products give the order of a group: the reference's and the model's.

        In the model's tensor, all other groups than the group ``number`` are in their current order.
        """
        if len(part.keys) == 1:
            key = part.keys[0]
            first, second = self._reference[self._counterpart(key)], self._ordered(key, but=part.dim)
        else:
            first = _stacked([self._reference[key] for key in part.keys])
            second = _stacked([self._ordered(key) for key in part.keys])
            key = part.keys[0]
        return TensorPair(self._reference, first, self._model, second, key)

    def _counterpart(self, key: str) -> str:
        """Return the key of the reference's tensor that the model's tensor ``key`` is compared with.

        It is the same key, except for tensors of experts: the order of the experts may have changed.
        """
        if key not in self._expert_of:
            return key
        number, unit = self._expert_of[key]
        keys = next(part.keys for part in self._groups[number].parts if len(part.keys) > 1 and key in part.keys)
        place = int(np.flatnonzero(self._orders[number][0] == unit)[0])
        return keys[place]

    def _ordered(self, key: str, but: int = -1) -> TensorInfo:
        """Return the model's tensor ``key`` in the current order of all groups, except along the dimension ``but``."""
        info = self._model[key]
        orders: Mapping[int, Any] = self._orders
        for dim, placed in sorted(self._places.get(key, {}).items()):
            order = order_along(info.shape[dim], placed, orders)
            if dim != but and order != list(range(info.shape[dim])):
                info = take(info, dim, [(index, index + 1) for index in order])
        return info

    def results(self) -> list[MatchedGroup]:
        """Return the result for each group: the order of its units, and the cosines before and after the matching."""
        sums: dict[str, tuple[float, float, float, float]] = {}
        for group in self._groups:
            for key in (key for part in group.parts for key in part.keys):
                if key not in sums:
                    sums[key] = self._sums(key) if self._is_shared(key) else (0.0, 0.0, 0.0, 0.0)
        self.gain = sum(after - before for before, after, *_ in sums.values())
        found = []
        for number, group in enumerate(self._groups):
            keys = dict.fromkeys(key for part in group.parts for key in part.keys)
            before, after, one, other = (sum(sums[key][at] for key in keys) for at in range(4))
            size = (one * other) ** 0.5 or 1.0
            order, shared = ([int(unit) for unit in each] for each in self._orders[number])
            found.append(MatchedGroup(group, order, shared, before / size, after / size))
        return found

    def _sums(self, key: str) -> tuple[float, float, float, float]:
        """Return four sums over the elements of a tensor of the model and the tensor of the reference.

        They are the inner product before the matching, the inner product after it, and the sum of squares of each.
        """
        first = TensorPair(self._reference, self._reference[key], self._model, self._model[key], key)
        before, one, other = dot_products(first, self._memory)
        there, ordered = self._counterpart(key), self._ordered(key)
        if there == key and ordered is self._model[key]:
            return before, before, one, other
        last = TensorPair(self._reference, self._reference[there], self._model, ordered, key)
        return before, dot_products(last, self._memory)[0], one, other


def _stacked(infos: Sequence[TensorInfo]) -> TensorInfo:
    return join([reshape(info, (1, *info.shape)) for info in infos], 0)


def _best(units: Array, queries: Array | None, sharing: int) -> tuple[Array, Array]:
    """Return the best order of the units of a group, and the best order of the query heads that share the units.

    ``units`` and ``queries`` are the matrices of inner products of all pairs of units, and of all pairs of query heads.
    ``sharing`` query heads share one unit; if none do, ``queries`` is None.
    """
    if queries is None:
        return assignment(units), np.arange(0)
    number = len(units)
    total = units.copy()
    inner = {}
    for row in range(number):
        for column in range(number):
            own = queries[row * sharing : (row + 1) * sharing, column * sharing : (column + 1) * sharing]
            inner[row, column] = assignment(own)
            total[row, column] += value_of(own, inner[row, column])
    order = assignment(total)
    shared = [inner[row, int(column)] + int(column) * sharing for row, column in enumerate(order)]
    return order, np.concatenate(shared)
