"""The merge planner: tensors of several models become one by a method, name by name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ...errors import PlanError
from ...methods.merge._method import Method
from ..plan.plan import Plan, PlanTarget
from ..transplant.select import SourceView
from .layers import Depths, LayerList, depth_in
from .options import MergeOptions, Piece, Place
from .steps import MergeSteps
from .ties import Ties
from .values import Values, check_matched, overlooked

__all__ = ["pieces_of", "plan_merge"]


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
