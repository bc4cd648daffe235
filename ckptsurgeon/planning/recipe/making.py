"""From a plan to the recipe of its output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ..plan.plan import FilePrint, Plan, PlanSource
from ..plan.step import Step
from .recipe import Made, Recipe

__all__ = ["made_of", "make_recipe"]


def make_recipe(plan: Plan, output: str, version: str) -> Recipe:
    """Return the recipe of a plan's output at ``output``, its checksums still zero."""
    folder = os.path.dirname(os.path.abspath(output))
    target = replace(
        plan.target,
        config=_relative(plan.target.config, folder),
        files=tuple(replace(_timeless(file), name=_relative(file.name, folder)) for file in plan.target.files),
        lists=(),
    )
    return Recipe(
        version=version,
        verb=plan.verb,
        seed=plan.seed,
        arguments=plan.arguments,
        sources=tuple(_relocated(source, folder) for source in plan.sources),
        target=target,
        tensors=MadeOfSteps(plan.steps),
        unexpected=plan.unexpected,
        metadata=plan.metadata,
        rows=plan.rows,
        vocabularies=plan.vocabularies,
    )


class MadeOfSteps(Mapping[str, Made]):
    """What a recipe says of the steps of a plan, worked out as it is asked for: there may be a hundred thousand."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = {step.key: step for step in steps}

    def __getitem__(self, key: str) -> Made:
        return made_of(self._steps[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def made_of(step: Step) -> Made:
    """Return what a recipe says of a step, its checksum still zero."""
    more = tuple((one.source, one.key) for one in step.more)
    return Made(
        step.op, step.kind, step.source, step.source_key, step.policy, step.tied_to, more=more, weights=step.weights,
        axis=step.axis, merge=step.merge, lora=step.lora, factor=step.factor, rule=step.rule,
        reason=step.reason, shared=step.shared,
    )  # fmt: skip


def _relative(path: str, folder: str) -> str:
    if not path or "://" in path:
        return path
    return os.path.relpath(os.path.abspath(path), folder)


def _timeless(file: FilePrint) -> FilePrint:
    return replace(file, mtime_ns=None)


def _relocated(source: PlanSource, folder: str) -> PlanSource:
    files = tuple(_timeless(file) for file in source.files)
    return replace(source, path=_relative(source.path, folder), files=files)
