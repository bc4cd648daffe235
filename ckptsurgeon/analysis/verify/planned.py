"""Holds what an output is, and says of itself, against a plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...planning.plan.plan import Plan, PlanSource, PlanTarget
from ...planning.recipe.making import made_of
from ...planning.recipe.recipe import Recipe
from ...util.text import escape, shape_text
from .check import Check

__all__ = ["check_plan"]


def check_plan(check: Check, plan: Plan) -> None:
    """Hold the output's dtypes, shapes, rows and origins against a plan."""
    for fault in _other_than_planned(check.expected.said, plan) if check.expected.said is not None else ():
        check.fail("", fault)
    if check.expected.seed not in (None, plan.seed):
        check.fail("", f"was drawn with seed {check.expected.seed}, planned with {plan.seed}")
    planned = {step.key: step for step in plan.steps}
    for key in check.expected.tensors.keys() - planned.keys():
        check.fail(key, "is not in the plan")
    for key, step in planned.items():
        info, made = check.output.get(key), check.expected.tensors.get(key)
        if info is not None and (info.dtype, info.shape) != (step.dtype, step.shape):
            check.fail(
                key,
                f"is {info.dtype} {shape_text(info.shape)}, planned as {step.dtype} {shape_text(step.shape)}",
            )
        if made is None:
            check.fail(key, "is planned and was not made")
        elif made._replace(crc32=0, implied=False) != made_of(step):
            check.fail(key, f"was made by {made.op} from {made.source_key or 'nothing'}, planned otherwise")


def _other_than_planned(said: Recipe, plan: Plan) -> Iterator[str]:
    """Yield what an output says of its making that a plan does not: vocabulary, metadata, sources."""
    if (said.rows, said.vocabularies) != (plan.rows, plan.vocabularies):
        yield "was made with another vocabulary than was planned"
    if dict(said.metadata or {}) != dict(plan.metadata):
        yield "carries other metadata than was planned"
    if said.target.companions and _files(said.target) != _files(plan.target):
        yield "has other files beside the weights than were planned"
    if len(said.sources) != len(plan.sources):
        yield f"was made of {len(said.sources)} sources, planned of {len(plan.sources)}"
        return
    for made, planned in zip(said.sources, plan.sources, strict=True):
        if _content(made) != _content(planned):
            yield f"was made of another {escape(planned.name)} than was planned"
        elif list(map(dict, made.operations)) != list(map(dict, planned.operations)):
            yield f"was made by other operations on {escape(planned.name)} than were planned"


def _files(target: PlanTarget) -> list[tuple[str, int, str]]:
    return [(one.name, one.size, one.sha256) for one in target.companions]


def _content(source: PlanSource) -> tuple[Any, ...]:
    """Return what tells one source from another, wherever it lies."""
    return source.root, source.stripped, [(file.name, file.size, file.sha256) for file in source.files]
