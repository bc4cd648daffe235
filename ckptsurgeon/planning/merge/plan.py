"""Plans a merge: a method merges tensors of several models, or of slices of their layers, into one output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...errors import PlanError
from ...methods.merge._method import Method
from ...tensors.tied_keys import tied_keys
from ...util.text import count, escape
from ..plan.files import PlanTarget
from ..plan.plan import Plan
from ..transplant.select import SourceView
from .layers import INPUT, LayerDepths, LayerList, depth_in, layers_of, position
from .options import MergeOptions, MergePiece, SourceKey
from .steps import MergeSteps
from .tied_tensors import ModelTies
from .values import ParameterValues, check_matched, overlooked

__all__ = ["LayerSlice", "LayerSource", "pieces_of", "plan_merge", "sliced_pieces"]

# Outputs whose layers are stacked from layers of models.


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


def pieces_of(
    views: Sequence[SourceView],
    models: Sequence[int],
    base: int | None,
    method: Method,
    values: ParameterValues,
    *,
    owned: Callable[[str], bool] = lambda key: True,
    layers: Callable[[Sequence[str]], Sequence[LayerList]] | None = None,
) -> list[MergePiece]:
    """Return the tensors of an output that merges all tensors with the same name.

    ``models`` and ``base`` are indices in ``views``. The tensors of the base come first, in its order. Keys for which
    ``owned`` returns False are left out.

    If ``values`` depend on layers, each tensor has a depth: 0 in the first layer, 1 in the last. If ``layers`` is
    given, it finds the lists of layers in the keys, and keys outside the lists have the depth 0. Otherwise the number
    of a layer is the first number in a key. Keys without a number have the depth 0 if they belong to input embeddings,
    else 1.
    """
    order = [*([base] if base is not None else []), *models]
    keys = list(dict.fromkeys(key for index in order for key in views[index].tensors if owned(key)))
    depths = dict.fromkeys(keys, 0.0)
    if values.depend_on_layers:
        depth = partial(depth_in, layers(keys)) if layers is not None else LayerDepths(keys).of
        depths = {key: depth(key) for key in keys}
    return [
        MergePiece(
            key, tuple(SourceKey(index, key) for index in models), SourceKey(base, key) if base is not None else None,
            method, values, depths[key],
        )
        for key in keys
    ]  # fmt: skip


def plan_merge(
    views: Sequence[SourceView],
    pieces: Sequence[MergePiece],
    options: MergeOptions,
    *,
    target: PlanTarget | None = None,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a merge; ``pieces`` are the tensors of the output, each with the tensors that it merges.

    Raises ConfigError for a parameter that is missing or out of bounds; PatternError for a pattern that matches
    nothing; PlanError if keys, shapes or kinds of numbers differ and no option allows it; FormatError if the values of
    a tensor are not plain bytes.
    """
    check_matched((piece.values, piece.key, [one.key for one in piece.models]) for piece in pieces)
    keys = [piece.key for piece in pieces]
    owners = [tied_keys(view.tensors) for view in views]
    ties = ModelTies(views, owners) if any(owners) else None  # most models have no ties
    planner = MergeSteps(views, options, keys, ties)
    steps = [step for piece in pieces for step in planner.steps(piece)]
    planner.check()
    if not steps:
        raise PlanError(
            "there is nothing to merge: no tensor is in all models.", hint="Use --on-missing any or --on-missing base."
        )
    steps = steps if ties is None else ties.tied(steps)
    return Plan(
        verb="merge",
        sources=tuple(view.source for view in views),
        target=target or PlanTarget("edit", views[0].source.name, ""),
        steps=tuple(steps),
        vocabularies=options.vocabulary.rows if any(step.vocabularies for step in steps) and options.vocabulary else (),
        seed=seed,
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(
            *notes,
            *overlooked((one.values for one in pieces), keys),
            *planner.notes(),
            *(ties.apart(steps) if ties else ()),
        ),
    )
