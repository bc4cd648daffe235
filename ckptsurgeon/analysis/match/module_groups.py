"""Groups the modules of a state dict, with their tensors; finds the groups of two state dicts that can correspond."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...tensors.info import TensorInfo
from .parts import NOTHING, Parts, agree

__all__ = ["KERNEL", "FreeUnits", "Unit", "fits", "units_of"]

_NUMBER = re.compile(r"\d{1,9}")
_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "scale": "weight",
    "weight_g": "weight.0",
    "weight_v": "weight.1",
    "parametrizations.weight.original0": "weight.0",
    "parametrizations.weight.original1": "weight.1",
}
"""{last segment of a key: common form} for norms in TensorFlow and torchtune, and weight norm before torch 2.0."""
KERNEL = "kernel"
"""The name of a layer's weight in TensorFlow and JAX, whose matrices have the shape (inputs, outputs)."""
_PARAMETRIZED = re.compile(r"(?:^|\.)parametrizations\.[^.]+\.original[01]$")

Index = tuple[int, ...]


@dataclass(eq=False)
class Unit:
    """A group of modules whose paths differ only in numbers, such as all ``layers.{n}.mlp``.

    ``path`` has ``#`` in place of each number; '' is the top level. A leaf is the last segment of a tensor's key, such
    as ``weight``. ``keys`` maps (numbers in the path, leaf) to the key. ``makes`` maps the numbers in the path to the
    shape of each leaf. ``order`` is the index of the group's first tensor in the state dict. ``parts`` says which part
    of a transformer block the modules may be by their names; it is empty if this is unknown.
    """

    path: str
    order: int
    parts: Parts = NOTHING
    keys: dict[tuple[Index, str], str] = field(default_factory=dict)
    makes: dict[Index, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    def add(self, index: Index, leaf: str, key: str, info: TensorInfo) -> None:
        """Add a tensor; ``index`` are the numbers in its module's path, ``leaf`` is the last segment of its key."""
        self.keys[index, leaf] = key
        self.makes.setdefault(index, {})[leaf] = info.shape


def units_of(tensors: Mapping[str, TensorInfo], view: str, parts: Mapping[str, Parts]) -> list[Unit]:
    """Return the tensors of a state dict in groups, in the order of the state dict.

    ``parts`` maps each key to the parts of a transformer block that its module may be.

    If ``view`` is "modules", modules whose paths differ only in numbers are one group. If ``view`` is "parts", modules
    are grouped in the same way, but modules with different last segments are never in one group, even if the segments
    are numbers, as in an ``nn.Sequential``. If ``view`` is "tensors", tensors whose keys differ only in numbers are one
    group.
    """
    found: dict[str, Unit] = {}
    for order, (key, info) in enumerate(tensors.items()):
        module, leaf = _split(key) if view != "tensors" else (key, _of_kernel(key, info))
        segments = module.split(".")
        layers = segments[: -1 if view == "parts" else None]
        numbers = tuple(int(part) for part in layers if _NUMBER.fullmatch(part))
        path = ".".join("#" if _NUMBER.fullmatch(part) else part for part in layers)
        path = f"{path}.{segments[-1]}".strip(".") if view == "parts" else path
        here = parts.get(key, NOTHING)
        unit = found.setdefault(path, Unit(path, order, here))
        unit.parts = unit.parts if unit.parts == here else NOTHING
        unit.add(numbers, _common(leaf, module, tensors), key, info)
    return list(found.values())


def _common(leaf: str, module: str, tensors: Mapping[str, TensorInfo]) -> str:
    """Return the common form of a leaf, such as ``weight`` for ``gamma``.

    A ``scale`` in a module with a ``weight`` keeps its name, because it belongs to a quantised tensor.
    """
    return leaf if leaf == "scale" and f"{module}.weight" in tensors else _LEAVES.get(leaf, leaf)


def _of_kernel(key: str, info: TensorInfo) -> str:
    """Return "kernel" for a TensorFlow or JAX kernel of two or more dimensions, else "".

    Such a kernel can only correspond to another kernel.
    """
    return KERNEL if key.rpartition(".")[2] == KERNEL and len(info.shape) > 1 else ""


def _split(key: str) -> tuple[str, str]:
    """Split a key into its module and the name of the tensor in it, which is usually the last segment.

    The name of a parametrised weight has three segments: ``parametrizations.weight.original0``.
    """
    found = _PARAMETRIZED.search(key)
    if found:
        return key[: found.start()], key[found.start() :].removeprefix(".")
    module, _, leaf = key.rpartition(".")
    return module, leaf


# Groups that can correspond by their tensor names and shapes. Groups are of one kind if they are the same parts of a
# transformer block, and have the same numbers, tensor names and shapes. There are few kinds, so kinds are compared
# instead of groups.


def fits(a: Unit, b: Unit) -> bool:
    """Return whether two groups of modules can correspond.

    A module of one group corresponds to the module of the other group with the same numbers in its path. There must be
    such a pair, and both modules of each pair must have the same tensor names and shapes.
    """
    common = [index for index in b.makes if index in a.makes]
    return bool(common) and all(a.makes[index] == b.makes[index] for index in common)


class _Kinds:
    """The unmatched module groups of one state dict, by kind.

    Groups are of one kind if they have the same ``parts``, and if their modules have the same numbers in their paths,
    and the same tensor names and shapes. ``of`` maps each group to the index of its kind. For each kind, ``free`` has
    its groups, and ``items`` the numbers, tensor names and shapes of its modules.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        numbers: dict[tuple[Parts, frozenset[object]], int] = {}
        self.of: dict[Unit, int] = {}
        self.free: list[dict[Unit, None]] = []
        self.items: list[frozenset[object]] = []
        for unit in units:
            made = frozenset((index, frozenset(leaves.items())) for index, leaves in unit.makes.items())
            kind = unit.parts, made
            if kind not in numbers:
                numbers[kind] = len(numbers)
                self.free.append({})
                self.items.append(made)
            self.of[unit] = numbers[kind]
            self.free[self.of[unit]][unit] = None

    def take(self, unit: Unit) -> None:
        del self.free[self.of.pop(unit)][unit]


class FreeUnits:
    """The unmatched module groups of two state dicts, and the pairs that can correspond by tensor names and shapes."""

    def __init__(self, first: Iterable[Unit], second: Iterable[Unit]) -> None:
        self._first, self._second = _Kinds(first), _Kinds(second)
        self._options: list[list[int]] = [[] for _ in self._second.free]
        for a, b in self._near():
            one, other = next(iter(self._first.free[a])), next(iter(self._second.free[b]))
            if fits(one, other) and agree(one.parts, other.parts):
                self._options[b].append(a)

    def _near(self) -> Iterator[tuple[int, int]]:
        """Yield (index of a kind in the first state dict, index of a kind in the second) for kinds that may correspond.

        Both kinds have a module with the same layer numbers, tensor names and shapes.
        """
        having: dict[object, list[int]] = defaultdict(list)
        for kind, items in enumerate(self._first.items):
            for item in items:
                having[item].append(kind)
        for kind, items in enumerate(self._second.items):
            yield from ((a, kind) for a in sorted({a for item in items for a in having.get(item, ())}))

    @property
    def first(self) -> list[Unit]:
        """The unmatched module groups of the first state dict, in its order."""
        return list(self._first.of)

    @property
    def second(self) -> list[Unit]:
        """The unmatched module groups of the second state dict, in its order."""
        return list(self._second.of)

    def free(self, a: Unit, b: Unit) -> bool:
        """Return whether neither of two module groups is matched yet."""
        return a in self._first.of and b in self._second.of

    def take(self, a: Unit, b: Unit) -> None:
        """Remove two module groups from the unmatched groups, since they were matched with each other."""
        self._first.take(a)
        self._second.take(b)

    def only_ones(self) -> Iterator[tuple[Unit, Unit]]:
        """Yield the pairs of module groups that can correspond only to each other."""
        options = [[a for a in kinds if self._first.free[a]] for kinds in self._options]
        wanted: dict[int, int] = defaultdict(int)
        for b, kinds in enumerate(options):
            for a in kinds:
                wanted[a] += len(self._second.free[b])
        for b, kinds in enumerate(options):
            if len(self._second.free[b]) == len(kinds) == 1 == len(self._first.free[kinds[0]]) == wanted[kinds[0]]:
                yield next(iter(self._first.free[kinds[0]])), next(iter(self._second.free[b]))

    def equals(self) -> Iterator[tuple[list[Unit], list[Unit]]]:
        """Yield pairs of lists of module groups, from the first and from the second state dict.

        Every group of the second list can correspond to every group of the first list, and to no other group. So names
        and shapes of tensors do not show which pairs correspond. The first list can be empty.
        """
        groups: dict[tuple[int, ...], list[Unit]] = defaultdict(list)
        for unit, kind in self._second.of.items():
            groups[tuple(a for a in self._options[kind] if self._first.free[a])].append(unit)
        for kinds, there in groups.items():
            yield sorted((unit for a in kinds for unit in self._first.free[a]), key=_order), sorted(there, key=_order)

    def islands(self) -> Iterator[tuple[list[Unit], list[Unit]]]:
        """Yield the unmatched module groups of both state dicts in independent subsets.

        Each subset is a pair of lists, from the first and the second state dict. Groups of different subsets cannot
        correspond.
        """
        part = self._joined()
        parts: dict[int, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
        for unit, kind in self._first.of.items():
            parts[part[kind]][0].append(unit)
        for unit, kind in self._second.of.items():
            if self._options[kind]:
                parts[part[self._options[kind][0]]][1].append(unit)
        yield from (both for both in parts.values() if both[0] and both[1])

    def mask(self, here: Sequence[Unit], there: Sequence[Unit]) -> npt.NDArray[np.bool_]:
        """Return a boolean matrix: true if a group of ``here`` (row) can correspond to one of ``there`` (column)."""
        rows, columns = (
            [side.of[unit] for unit in units] for side, units in ((self._first, here), (self._second, there))
        )
        row_of = {kind: number for number, kind in enumerate(dict.fromkeys(rows))}
        column_of = {kind: number for number, kind in enumerate(dict.fromkeys(columns))}
        table = np.zeros((len(row_of), len(column_of)), bool)
        for b, column in column_of.items():
            table[[row_of[a] for a in self._options[b] if a in row_of], column] = True
        return table[np.ix_([row_of[a] for a in rows], [column_of[b] for b in columns])]

    def _joined(self) -> list[int]:
        """Return, for each kind of module groups in the first state dict, one kind that represents its whole subset.

        The subsets are those that ``islands`` yields. Kinds are given by their indices.
        """
        above = list(range(len(self._first.free)))

        def top(kind: int) -> int:
            while above[kind] != kind:
                above[kind] = kind = above[above[kind]]
            return kind

        for first, *others in filter(None, self._options):
            for other in others:
                one, another = sorted((top(first), top(other)))
                above[another] = one
        return [top(kind) for kind in range(len(above))]


def _order(unit: Unit) -> int:
    return unit.order
