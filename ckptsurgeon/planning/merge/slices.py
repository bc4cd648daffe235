"""Lists the tensors of an output whose layers are stacked from layers of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...errors import PlanError
from ...methods.merge._method import Method
from ...util.text import count, escape
from ..plan.files import SourceView
from .layers import INPUT, LayerList, layers_of, position
from .pieces import MergePiece, ParameterValues, SourceKey

__all__ = ["LayerSlice", "LayerSource", "sliced_pieces"]


@dataclass(frozen=True)
class LayerSource:
    """The layers of a model from ``first`` up to, but not including, ``end``.

    ``source`` is the model's index in the sources, ``where`` the configuration field with the range, for messages.
    """

    source: int
    first: int
    end: int
    where: str = ""


@dataclass(frozen=True)
class LayerSlice:
    """Consecutive layers of the output: each is merged from one layer of every model, and of the base (if any)."""

    models: tuple[LayerSource, ...]
    base: LayerSource | None
    values: ParameterValues

    @property
    def sources(self) -> tuple[LayerSource, ...]:
        """The range of layers of the base, if there is one, then the range of each model."""
        return (*((self.base,) if self.base is not None else ()), *self.models)

    @property
    def length(self) -> int:
        """The number of layers of the output that the slice makes."""
        return self.sources[0].end - self.sources[0].first


def sliced_pieces(
    views: Sequence[SourceView],
    slices: Sequence[LayerSlice],
    layers: LayerList,
    method: Method,
    owned: Callable[[str], bool] = lambda key: True,
) -> list[MergePiece]:
    """Return the tensors of an output whose layers are made by the slices, one slice after the other.

    Tensors before the layers (input embeddings) are merged like the first layer of the first slice. All other tensors
    outside the layers are merged like the first layer of the last slice. Keys for which ``owned`` returns False are
    left out. Raises PlanError for layers that a model lacks.
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
        raise PlanError(
            f"{escape(name)} has no tensors whose keys begin with {escape(layers.prefix)}.",
            hint="Merge models of the same architecture.",
        )
    if one.end > number:
        raise PlanError(
            f"{escape(one.where)} asks for layers {one.first} to {one.end - 1} of {escape(name)}, "
            f"which has {count(number, 'layer')}, 0 to {number - 1}.",
            hint=f"Use a range that ends at {number} or before: its end is not included.",
        )


def _stacked(
    slices: Sequence[LayerSlice],
    stacks: Mapping[int, Mapping[int, Sequence[str]]],
    layers: LayerList,
    method: Method,
) -> Iterator[MergePiece]:
    above = 0
    for part in slices:
        for offset in range(part.length):
            rests = dict.fromkeys(
                rest for one in part.sources for rest in stacks[one.source].get(one.first + offset, ())
            )
            depth = position(offset, part.length)
            for rest in rests:
                yield _piece(
                    layers.key(above + offset, rest), part, method, partial(_sliced_layer, layers, offset, rest), depth
                )
        above += part.length


def _piece(key: str, part: LayerSlice, method: Method, own: Callable[[LayerSource], str], depth: float) -> MergePiece:
    base = SourceKey(part.base.source, own(part.base)) if part.base is not None else None
    return MergePiece(
        key, tuple(SourceKey(one.source, own(one)) for one in part.models), base, method, part.values, depth
    )


def _same(key: str, one: LayerSource) -> str:
    return key


def _sliced_layer(layers: LayerList, offset: int, rest: str, one: LayerSource) -> str:
    return layers.key(one.first + offset, rest)
