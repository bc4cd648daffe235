"""Finds matrices with corresponding names that one of two state dicts stores transposed.

The weight of ``nn.Linear`` has the shape (outputs, inputs). ``Conv1D`` of GPT-2 and the kernels of TensorFlow and JAX
have the shape (inputs, outputs). So by shapes alone, the first layer of an MLP in one state dict would be matched with
the second layer of the MLP in the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from ...tensors.info import TensorInfo
from ...util.text import count, listing
from .module_groups import KERNEL, FreeUnits, Unit, fits, units_of
from .names import Likeness, by_word
from .nearness import MARGIN, Nearness
from .parts import Parts, agree
from .proposal import Tensors

__all__ = ["transposed", "transposed_note"]

SURE = 0.5
"""If it is not known which part of a block two modules are, their names must be at least this similar to be matched."""

Shape = tuple[int, ...]


def transposed(source: Tensors, destination: Tensors, parts: Sequence[Mapping[str, Parts]]) -> dict[str, str]:
    """Return {key in ``source``: key in ``destination``} of the matrices that one of the two stores transposed.

    The two names of such a pair are more similar than either of them is to any name that fits without transposing.
    Square matrices are included only if they are kernels. ``parts`` has two mappings, for ``source`` and
    ``destination``: from a key to the part of a transformer block that its module may be.
    """
    found = {key: key for key in source if key in destination and _is_turned(source[key], destination[key])}
    left = _left(source, destination, found), _left(destination, source, found)
    first, second = (units_of(one, "tensors", known) for one, known in zip(left, parts, strict=True))
    likeness = Likeness(first, second)
    has_kernels = any(KERNEL in made for unit in second for made in unit.makes.values())
    of = {turned: unit for unit in first for turned in _turned(unit, has_kernels)}
    fitting, rivals = FreeUnits(of, second), (_Rivals(first), _Rivals(second))
    near = Nearness(fitting, likeness, ())
    while pairs := [(a, b) for a, b in near.mutual() if fitting.free(a, b)]:
        for turned, other in pairs:
            near.take(turned, other)
            fitting.take(turned, other)
            unit = of[turned]
            if not any(key in found for key in unit.keys.values()) and _is_closer(unit, other, rivals, likeness):
                here, there = ({index: key for (index, _), key in one.keys.items()} for one in (unit, other))
                found |= {key: there[index] for index, key in here.items() if index in there}
    return found


def _left(one: Tensors, other: Tensors, found: Mapping[str, str]) -> dict[str, TensorInfo]:
    """Return the tensors of ``one`` that are not in ``found`` and that ``other`` does not have in the same shape."""
    return {
        key: info
        for key, info in one.items()
        if key not in found and not (key in other and other[key].shape == info.shape)
    }


def _is_turned(here: TensorInfo, there: TensorInfo) -> bool:
    return len(here.shape) == 2 and here.shape == there.shape[::-1] and not _is_square(here)


def _turned(unit: Unit, has_kernels: bool) -> Iterator[Unit]:
    """Yield the tensor groups that would result from ``unit`` if its tensors were stored transposed.

    A kernel is yielded as a weight. A weight is yielded as a kernel, if the other state dict ``has_kernels``, and as a
    transposed weight, if it is a matrix.
    """
    shapes = {index: shape for index, made in unit.makes.items() for shape in made.values()}
    is_kernel = any(KERNEL in made for made in unit.makes.values())
    if is_kernel:
        yield _with(unit, {index: _as_weight(shape) for index, shape in shapes.items()}, "")
    elif has_kernels and all(len(shape) > 1 for shape in shapes.values()):
        yield _with(unit, {index: _as_kernel(shape) for index, shape in shapes.items()}, KERNEL)
    if not is_kernel and all(len(shape) == 2 and shape[0] != shape[1] for shape in shapes.values()):
        yield _with(unit, {index: shape[::-1] for index, shape in shapes.items()}, "")


def _as_weight(shape: Shape) -> Shape:
    """Return the shape of a kernel as a weight of torch: outputs and inputs first, then the sizes of a convolution.

    A vector in a group of kernels stays as it is.
    """
    return shape if len(shape) < 2 else (shape[-1], shape[-2], *shape[:-2])


def _as_kernel(shape: Shape) -> Shape:
    """Return the shape of a weight of torch as a kernel; the reverse of ``_as_weight``."""
    return (*shape[2:], shape[1], shape[0])


def _with(unit: Unit, shapes: Mapping[tuple[int, ...], Shape], leaf: str) -> Unit:
    keys = {(index, leaf): key for (index, _), key in unit.keys.items()}
    return Unit(unit.path, unit.order, unit.parts, keys, {index: {leaf: shape} for index, shape in shapes.items()})


class _Rivals:
    """Finds the tensor groups of one state dict that fit a group of the other without transposing.

    ``units`` are the groups of the first state dict.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._having = by_word(units)
        self._made: dict[object, list[Unit]] = defaultdict(list)
        for unit in units:
            for module in _made(unit):
                self._made[module].append(unit)

    def of(self, unit: Unit, words: Collection[str]) -> list[Unit]:
        """Return the groups that fit ``unit``; if ``words`` are given, only the groups with one of these words."""
        alike = [self._made[module] for module in _made(unit) if module in self._made]
        near = [self._having[word] for word in words if word in self._having]
        fewer = min(alike, near if words else alike, key=lambda lists: sum(map(len, lists)))
        options = dict.fromkeys(one for several in fewer for one in several)
        return [one for one in options if fits(one, unit) and agree(one.parts, unit.parts)]


def _made(unit: Unit) -> Iterator[object]:
    """Yield, for each module of a group, the numbers in its path and the shapes of its tensors."""
    return ((index, frozenset(leaves.items())) for index, leaves in unit.makes.items())


def _is_closer(a: Unit, b: Unit, rivals: tuple[_Rivals, _Rivals], likeness: Likeness) -> bool:
    """Return whether the names of two tensor groups are similar, and more similar than the names of any rival pair.

    In a rival pair, one of the two groups is paired with a group that it fits without transposing.
    """
    score = float(likeness([a], [b])[0, 0])
    if score < (MARGIN if a.parts and b.parts else SURE):
        return False
    here, there = (
        side.of(unit, likeness.telling(unit, score - MARGIN)) for side, unit in zip(rivals, (b, a), strict=True)
    )
    near = [*likeness(here, [b]).ravel(), *likeness([a], there).ravel()]
    return score >= max(near, default=0.0) + MARGIN


def transposed_note(turned: Mapping[str, str], names: Mapping[str, str], source: Tensors) -> str:
    """Return the note on transposed matrices, and on square matrices, which may be transposed with the same shape.

    Both ``turned`` (the transposed matrices) and ``names`` (the proposed pairs) map source keys to destination keys.
    """
    is_same = all(key == new for key, new in turned.items())
    shown = [key if key == new else f"{key} ({new})" for key, new in turned.items()]
    square = [key for key, new in names.items() if (key == new or not is_same) and _is_square(source[key])]
    alike = "square matrices with the same name" if is_same else "square matrices"
    may_be = f"; {alike} may be transposed, too: {listing(square, 3)}" if square else ""
    how = "with the same name in both models" if is_same else "whose names correspond"
    return (
        f"no rules are proposed for {count(len(turned), 'matrix', 'matrices')} {how}, because only one of the two "
        f"models stores them transposed: {listing(shown, 3)}. Transpose them with --operations{may_be}"
    )


def _is_square(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.shape[0] == info.shape[1]
