"""Copies tensors that do not change between two trials from the earlier model, instead of merging them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from ...checkpoint.opening import open_checkpoint
from ...engine.inputs import PlanInputs
from ...formats.base.header import FilePrint
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ..inputs.inputs import plan_source

__all__ = ["MadeModel", "equal_steps", "with_copies"]

COMPUTED = ("average", "lora", "max", "merge")
"""The operations whose results are copied from the earlier model; steps that copy a source stay as they are."""


@dataclass(frozen=True)
class MadeModel:
    """The written model of a trial: its plan, its path, and the fingerprints of its files."""

    trial: int
    plan: Plan
    path: str
    files: tuple[FilePrint, ...]

    @classmethod
    def of(cls, trial: int, plan: Plan, path: str) -> MadeModel:
        """Return the model that has just been written to ``path``."""
        with open_checkpoint(path) as checkpoint:
            return cls(trial, plan, path, checkpoint.files)


def equal_steps(plan: Plan, before: Plan) -> frozenset[str]:
    """Return the keys of the tensors that both plans compute in the same way: from the same files, with equal values.

    The result is empty if the plans have different sources, seeds or vocabularies. Tensors that are stored quantised
    are left out, and so are keys that are tied to another key, because only that other key is stored.
    """
    if plan.sources != before.sources or plan.seed != before.seed or plan.vocabularies != before.vocabularies:
        return frozenset()
    steps = {step.key: step for step in before.steps}
    return frozenset(
        step.key
        for step in plan.steps
        if step.op in COMPUTED and step.coded is None and not step.tied_to and steps.get(step.key) == step
    )


def with_copies(plan: Plan, before: MadeModel) -> Plan:
    """Return ``plan`` changed so that tensors that are equal in the model ``before`` are copied from its files.

    If these files have changed, ``plan`` is returned unchanged.
    """
    same = equal_steps(plan, before.plan)
    if not same:
        return plan
    checkpoint = open_checkpoint(before.path)
    if checkpoint.files != before.files:
        checkpoint.close()
        return plan
    at = len(plan.sources)
    steps = [_copy(step, at) if step.key in same and step.key in checkpoint else step for step in plan.steps]
    inputs = cast("PlanInputs", plan.inputs)
    return replace(
        plan,
        sources=(*plan.sources, plan_source("the trial before", checkpoint)),
        steps=tuple(steps),
        inputs=replace(inputs, sources=(*inputs.sources, checkpoint)),
    )


def _copy(step: Step, source: int) -> Step:
    return Step(step.key, "copy", step.dtype, step.shape, source, step.key, step.dtype, step.shape)
