"""Finds tensors with corresponding names but different shapes: 1x1 convolutions, and transposed matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..module_groups import KERNEL
from ..proposal import Tensors
from ..propose import propose
from .places import shown
from .steps import ORDER, TURN, Change, in_place

__all__ = ["flat_shape", "squeezed", "turned_in_some_layers"]

Shape = tuple[int, ...]


def flat_shape(shape: Shape) -> Shape:
    """Return a shape without its last dimensions of size 1, as in a 1x1 convolution; at least two dimensions remain."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


def squeezed(source: Tensors, destination: Tensors) -> Iterator[Change]:
    """Yield the reshapes of 1x1 convolutions that are linear layers in the other model, and the reverse."""
    if not any(len(info.shape) > 2 and info.shape[-1] == 1 for side in (source, destination) for info in side.values()):
        return
    for key, new in _names(source, destination, flat_shape).items():
        if source[key].shape != (shape := destination[new].shape):
            yield Change((in_place("reshape", key, ORDER, (("shape", shape),)),), {key: new}, (key,), "name")


def turned_in_some_layers(source: Tensors, destination: Tensors) -> Iterator[Change]:
    """Yield the transposes and new names of matrices that only some layers store transposed.

    If all layers store them transposed, ``transposed`` finds them more reliably, because it compares both orientations.
    """
    sides = [
        {key: info for key, info in side.items() if _may_be_turned(key, info.shape)} for side in (source, destination)
    ]
    if not sides[0] or not sides[1]:
        return
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for pair in _names(sides[0], sides[1], _sorted).items():
        groups[shown(pair[0]), shown(pair[1])].append(pair)
    for pairs in groups.values():
        turned = {old: source[old].shape != destination[new].shape for old, new in pairs}
        if len(set(turned.values())) == 2:
            for old, new in pairs:
                steps = (in_place("transpose", old, TURN),) if turned[old] else ()
                yield Change(steps, {old: new}, (old,), "transposed")


def _may_be_turned(key: str, shape: Shape) -> bool:
    return len(shape) == 2 and shape[0] != shape[1] and key.rpartition(".")[2] != KERNEL


def _sorted(shape: Shape) -> Shape:
    return tuple(sorted(shape))


def _names(source: Tensors, destination: Tensors, changed: Callable[[Shape], Shape]) -> dict[str, str]:
    """Return {source key: destination key} of tensors with similar names whose shapes are equal after ``changed``."""
    sides = [
        {key: replace(info, shape=changed(info.shape)) for key, info in side.items()} for side in (source, destination)
    ]
    return dict(propose("", sides[0], "", sides[1]).names)
