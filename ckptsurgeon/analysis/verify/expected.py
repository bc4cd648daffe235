"""What an output should be, as its recipe or a plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...engine.run.context import MergeContext
from ...planning.plan.plan import Plan, PlanSource
from ...planning.plan.rows import Rows
from ...planning.recipe.making import made_of
from ...planning.recipe.recipe import Made, Recipe

__all__ = ["Expected", "difference_of", "expected_of_plan", "expected_of_recipe"]


@dataclass(frozen=True)
class Expected:
    """What an output should be: each tensor's making, the sources by index, and the seal if there is one."""

    tensors: Mapping[str, Made]
    sources: Mapping[int, Checkpoint]
    absent: Mapping[int, str]
    seal: str = ""
    seed: int | None = None
    has_checksums: bool = True
    rows: Rows | None = None
    vocabularies: tuple[Rows, ...] = ()
    said: Recipe | None = None
    """What the output says of itself."""
    keeper: int | None = None
    """The index of the source that is the destination itself."""
    context: MergeContext = field(default_factory=MergeContext)
    """What merges were carried out with."""

    @cached_property
    def factors(self) -> Mapping[Any, Mapping[str, str]]:
        """The keys of the factors A and B of each difference, by what ``difference_of`` says."""
        pairs: dict[Any, dict[str, str]] = {}
        for key, made in self.tensors.items():
            if made.factor is not None:
                pairs.setdefault(difference_of(made), {}).setdefault(made.factor.part, key)
        return pairs


def difference_of(made: Made) -> tuple[Any, ...]:
    """Return what tells the difference that a factor is of from others."""
    assert made.factor is not None
    return made.source, made.source_key, made.more, made.factor.rank, made.factor.transposed


def expected_of_recipe(
    recipe: Recipe, sources: Mapping[int, Checkpoint], absent: Mapping[int, str], context: MergeContext
) -> Expected:
    """Return what a recipe says its output is."""
    return Expected(
        recipe.tensors, sources, absent, seal=recipe.seal, seed=recipe.seed, rows=recipe.rows,
        vocabularies=recipe.vocabularies, said=recipe, keeper=_keeper(recipe.sources),
        context=replace(context, seed=recipe.seed),
    )  # fmt: skip


def _keeper(sources: Sequence[PlanSource]) -> int | None:
    return next((i for i, source in enumerate(sources) if source.role == "destination"), None)


def expected_of_plan(
    plan: Plan, sources: Mapping[int, Checkpoint], absent: Mapping[int, str], context: MergeContext
) -> Expected:
    """Return what a plan says its output should be; there are no checksums in a plan."""
    made = {step.key: made_of(step) for step in plan.steps}
    return Expected(
        made, sources, absent, has_checksums=False, rows=plan.rows, vocabularies=plan.vocabularies,
        keeper=_keeper(plan.sources), context=replace(context, seed=plan.seed),
    )  # fmt: skip
