"""The merge planner: tensors of several models, or of slices of them, become one by a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...errors import PlanError
from ...methods.merge._method import Method
from ...util.text import count, escape
from ..plan.files import PlanTarget
from ..plan.plan import Plan
from ..transplant.select import SourceView
from .layers import INPUT, Depths, LayerList, depth_in, layers_of, position
from .options import MergeOptions, Piece, Place
from .steps import MergeSteps
from .ties import Ties
from .values import Values, check_matched, overlooked

__all__ = ["LayerSlice", "LayerSource", "pieces_of", "plan_merge", "sliced_pieces"]

# Outputs that are stacked from layers of models: which tensor of which model goes where. Pure.


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
                    layers.key(above + offset, rest), part, method, partial(_sliced_layer, layers, offset, rest), depth
                )
        above += part.length


def _piece(key: str, part: LayerSlice, method: Method, own: Callable[[LayerSource], str], depth: float) -> Piece:
    base = Place(part.base.source, own(part.base)) if part.base is not None else None
    return Piece(key, tuple(Place(one.source, own(one)) for one in part.models), base, method, part.values, depth)


def _same(key: str, one: LayerSource) -> str:
    return key


def _sliced_layer(layers: LayerList, offset: int, rest: str, one: LayerSource) -> str:
    return layers.key(one.first + offset, rest)


def pieces_of(
    views: Sequence[SourceView],
    models: Sequence[int],
    base: int | None,
    method: Method,
    values: Values,
    *,
    owned: Callable[[str], bool] = lambda key: True,
    layers: Callable[[Sequence[str]], Sequence[LayerList]] | None = None,
) -> list[Piece]:
    """Return the tensors that an output has if each is merged with those of its own name; the base's order first.

    Only keys that are ``owned`` count. ``layers`` finds the lists that say how deep a key lies, which count from their
    first layer to their last, all else as their first; without it a layer is the first number in a key, and what comes
    after the layers counts as the last.
    """
    order = [*([base] if base is not None else []), *models]
    keys = list(dict.fromkeys(key for index in order for key in views[index].tensors if owned(key)))
    depth = partial(depth_in, layers(keys)) if layers is not None else Depths(keys).of
    return [
        Piece(
            key, tuple(Place(index, key) for index in models), Place(base, key) if base is not None else None,
            method, values, depth(key),
        )
        for key in keys
    ]  # fmt: skip


def plan_merge(
    views: Sequence[SourceView],
    pieces: Sequence[Piece],
    options: MergeOptions,
    *,
    target: PlanTarget | None = None,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan the merge of models that hold the same tensors.

    Raises ConfigError for a parameter that is missing or out of bounds, PatternError for a pattern that matches
    nothing, PlanError where keys, shapes or kinds of numbers differ and nothing says what to do, FormatError where a
    tensor is not plain values.
    """
    check_matched((piece.values, piece.key, [one.key for one in piece.models]) for piece in pieces)
    keys = [piece.key for piece in pieces]
    planner = MergeSteps(views, options, keys)
    steps = [step for piece in pieces for step in planner.steps(piece)]
    planner.check()
    if not steps:
        raise PlanError("nothing is left: no tensor is in all models.", hint="Use --on-missing any or base.")
    ties = Ties(views)
    steps = ties.tied(steps)
    return Plan(
        verb="merge",
        sources=tuple(view.source for view in views),
        target=target or PlanTarget("edit", views[0].source.name, ""),
        steps=tuple(steps),
        vocabularies=options.vocabulary.rows if any(step.vocabularies for step in steps) and options.vocabulary else (),
        seed=seed,
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(*notes, *overlooked((one.values for one in pieces), keys), *planner.notes(), *ties.apart(steps)),
    )
