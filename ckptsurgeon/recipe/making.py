"""From a plan to the recipe of its output."""

from __future__ import annotations

import os
from dataclasses import replace

from ..plan import FilePrint, Plan, PlanSource, Step
from .recipe import Made, Recipe

__all__ = ["made_of", "make_recipe"]


def make_recipe(plan: Plan, output: str, version: str) -> Recipe:
    """Return the recipe of a plan's output at ``output``, its checksums still zero."""
    folder = os.path.dirname(os.path.abspath(output))
    tensors = {step.key: made_of(step) for step in plan.steps}
    target = replace(
        plan.target,
        config=_relative(plan.target.config, folder),
        files=tuple(replace(_timeless(file), name=_relative(file.name, folder)) for file in plan.target.files),
    )
    return Recipe(
        version=version,
        verb=plan.verb,
        seed=plan.seed,
        arguments=plan.arguments,
        sources=tuple(_relocated(source, folder) for source in plan.sources),
        target=target,
        tensors=tensors,
        unexpected=plan.unexpected,
        metadata=plan.metadata,
        rows=plan.rows,
        vocabularies=plan.vocabularies,
    )


def made_of(step: Step) -> Made:
    """Return what a recipe says of a step, its checksum still zero."""
    more = tuple((one.source, one.key) for one in step.more)
    return Made(
        step.op, step.kind, step.source, step.source_key, step.policy, step.tied_to, more=more, weights=step.weights,
        axis=step.axis, merge=step.merge, lora=step.lora, factor=step.factor, rule=step.rule,
        reason=step.reason,
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
