"""Outputs that are stacked from layers of models: which tensor of which model goes where. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...errors import PlanError
from ...methods.merge._method import Method
from ...util.text import count, escape
from ..transplant.select import SourceView
from .layers import INPUT, LayerList, layers_of, position
from .options import Piece, Place
from .values import Values

__all__ = ["LayerSlice", "LayerSource", "sliced_pieces"]


@dataclass(frozen=True)
class LayerSource:
    """Layers of a model, by its number among the sources: from ``first`` to before ``end``; ``where`` that is said."""

    source: int
    first: int
    end: int
    where: str = ""


@dataclass(frozen=True)
class LayerSlice:
    """Layers of the output: those of its models, and the base's where there is one, merged one by one."""

    models: tuple[LayerSource, ...]
    base: LayerSource | None
    values: Values

    @property
    def sources(self) -> tuple[LayerSource, ...]:
        """All of them, the base first."""
        return (*((self.base,) if self.base is not None else ()), *self.models)

    @property
    def length(self) -> int:
        """How many layers it has."""
        return self.sources[0].end - self.sources[0].first


def sliced_pieces(
    views: Sequence[SourceView],
    slices: Sequence[LayerSlice],
    layers: LayerList,
    method: Method,
    owned: Callable[[str], bool] = lambda key: True,
) -> list[Piece]:
    """Return the tensors of an output whose layers are those of the slices, one after the other.

    What comes before the layers is merged as the first slice says, what comes after them as the last, both at its
    first layer. Only keys that are ``owned`` count. Raises PlanError for layers that a model has not.
    """
    stacks = {
        one.source: layers_of(layers, filter(owned, views[one.source].tensors))
        for part in slices
        for one in part.sources
    }
    for part in slices:
        for one in part.sources:
            _check_range(one, len(stacks[one.source]), views[one.source].source.name, layers)
    used = sorted(stacks)
    loose = dict.fromkeys(
        key for source in used for key in views[source].tensors if owned(key) and layers.split(key) is None
    )
    before = [key for key in loose if INPUT.search(key)]
    after = [key for key in loose if not INPUT.search(key)]
    return [
        *(_piece(key, slices[0], method, partial(_same, key), 0.0) for key in before),
        *_stacked(slices, stacks, layers, method),
        *(_piece(key, slices[-1], method, partial(_same, key), 0.0) for key in after),
    ]


def _check_range(one: LayerSource, number: int, name: str, layers: LayerList) -> None:
    if not number:
        raise PlanError(f"{escape(name)} has no {escape(layers.prefix)}.", hint="Merge models of one kind.")
    if one.end > number:
        raise PlanError(
            f"{escape(one.where)} asks for layers {one.first} to {one.end - 1} of {escape(name)}, "
            f"which has {count(number, 'layer')}, 0 to {number - 1}.",
            hint=f"A range ends at {number} at most, which it does not include.",
        )


def _stacked(
    slices: Sequence[LayerSlice],
    stacks: Mapping[int, Mapping[int, Sequence[str]]],
    layers: LayerList,
    method: Method,
) -> Iterator[Piece]:
    above = 0
    for part in slices:
        for offset in range(part.length):
            rests = dict.fromkeys(
                rest for one in part.sources for rest in stacks[one.source].get(one.first + offset, ())
            )
            depth = position(offset, part.length)
            for rest in rests:
                yield _piece(
                    layers.key(above + offset, rest), part, method, partial(_layer, layers, offset, rest), depth
                )
        above += part.length


def _piece(key: str, part: LayerSlice, method: Method, own: Callable[[LayerSource], str], depth: float) -> Piece:
    base = Place(part.base.source, own(part.base)) if part.base is not None else None
    return Piece(key, tuple(Place(one.source, own(one)) for one in part.models), base, method, part.values, depth)


def _same(key: str, one: LayerSource) -> str:
    return key


def _layer(layers: LayerList, offset: int, rest: str, one: LayerSource) -> str:
    return layers.key(one.first + offset, rest)
