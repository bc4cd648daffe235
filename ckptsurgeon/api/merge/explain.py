"""``explain`` for a merge: merges single tensors by every method, and compares the results with the models' changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory

from ...analysis.merge_explanation import ExplainedMerge, MergeExplanation, MergeOutcome
from ...engine.inputs import PlanInputs
from ...errors import CheckpointError, ConfigError
from ...methods.merge._method import Method
from ...methods.merge._registry import merge_methods
from ...planning.keys.pattern import KeyPattern
from ...planning.keys.pattern_hints import matched
from ...planning.plan.plan import Plan
from ...planning.plan.step import Input, Step
from ...util.text import count
from ..apply import apply
from ..compare_changes import compare_changes
from .merge import merge

__all__ = ["NEEDED", "explain_merge", "why_not_compared"]

MOST = 16
"""The largest number of tensors that are explained at once: each is merged by every method."""
NEEDED = {"weight": 1.0, "t": 0.5}
"""The values of parameters without a default: equal weights, and the middle between two models."""
CODED = "this tensor is a part of a quantised weight (--encoding dequantize merges the decoded weights)"
BASES = ("required", "optional")
"""The values of ``Method.base`` for methods that merge the models' changes from a base."""


def explain_merge(plan: Plan, patterns: Sequence[str]) -> ExplainedMerge:
    """Explain how the tensors that ``patterns`` match are merged, and how every other method would merge them.

    The inputs of these tensors, and the results, are written to temporary files. Raises PatternError for a pattern that
    matches no key of the output, ConfigError if they match more than ``MOST`` tensors.
    """
    keys = [step.key for step in plan.steps]
    hits, _ = matched([(f"--explain {one}", KeyPattern(one)) for one in patterns], keys, "output")
    wanted = {key for hit in hits for key in hit}
    if len(wanted) > MOST:
        raise ConfigError(
            f"--explain matches {count(len(wanted), 'tensor')}; at most {MOST} are explained at once, since each is "
            "merged by every method.",
            hint="Name one layer, as in --explain 'model.layers.0.*'.",
        )
    return ExplainedMerge(tuple(_explained(plan, step) for step in plan.steps if step.key in wanted))


def _explained(plan: Plan, step: Step) -> MergeExplanation:
    inputs = step.combined
    names = [plan.sources[one.source].name for one in inputs]
    made = MergeExplanation(step, tuple(names))
    if why := CODED if step.coded is not None and step.merge is not None else why_not_compared(step):
        return replace(made, why=why)
    made = replace(made, models=tuple(names[:-1]), base=names[-1])
    with TemporaryDirectory() as folder:
        try:
            paths = [
                _copied(plan, step, one, os.path.join(folder, f"{at}.safetensors")) for at, one in enumerate(inputs)
            ]
            changes = compare_changes(paths[-1], paths[:-1]).tensors[0]
            outcomes = tuple(_outcomes(plan, step, paths, folder))
        except CheckpointError as error:
            return replace(made, why=error.message)
    return replace(made, changes=changes, outcomes=outcomes)


def why_not_compared(step: Step) -> str:
    """Return the reason why the changes of the models cannot be compared for a tensor; "" if they can be compared."""
    if step.merge is None:
        return "the tensor is not merged"
    if step.policy:
        return (
            f"the shapes or vocabularies of the models differ (made to fit by --on-mismatch or --vocab: {step.policy})"
        )
    if not step.merge.base:
        return f"the method {step.merge.method} has no base, so the models have no changes to compare"
    return ""


def _copied(plan: Plan, step: Step, one: Input, path: str) -> str:
    """Write an input tensor of a step to the file ``path``, under its key in the output; return ``path``."""
    copy = Step(step.key, "copy", one.dtype, one.shape, one.source, one.key, one.dtype, one.shape)
    apply(replace(plan, steps=(copy,), metadata={}, notes=()), path)
    return path


def _outcomes(plan: Plan, step: Step, paths: Sequence[str], folder: str) -> Iterator[MergeOutcome]:
    """Yield the result of the plan's merge method for a tensor, then one for each other method that takes these models.

    If such a method cannot merge the tensor, its result has the reason. ``paths`` are files with the inputs.
    """
    assert step.merge is not None
    path = os.path.join(folder, "planned.safetensors")
    apply(replace(plan, steps=(step,), metadata={}, notes=()), path)
    yield _outcome(step.merge.method, paths, path, is_planned=True)
    for name, method in merge_methods(plan.inputs.plugins if isinstance(plan.inputs, PlanInputs) else ()).items():
        if name != step.merge.method and method.models[0] <= len(paths) - 1 and method.needs_others:
            yield _alternative(method, plan, paths, os.path.join(folder, f"{name}.merged.safetensors"))


def _alternative(method: Method, plan: Plan, paths: Sequence[str], path: str) -> MergeOutcome:
    needed = [one.name for one in method.parameters if one.default is None]
    if lacking := [name for name in needed if name not in NEEDED]:
        return MergeOutcome(method.name, why=f"needs {', '.join(lacking)}")
    if method.statistics:  # statistics of whole models do not belong to copies of single tensors
        return MergeOutcome(method.name, why=f"needs statistics ({method.statistics})")
    given = {name: NEEDED[name] for name in needed}
    base = paths[-1] if method.base in BASES else None
    try:
        apply(
            merge(paths[:-1], method=method.name, base=base, parameters=given, seed=plan.seed, memory=_memory(plan)),
            path,
        )
    except CheckpointError as error:
        return MergeOutcome(method.name, why=error.message.rstrip("."))
    return _outcome(method.name, paths, path)


def _memory(plan: Plan) -> int | None:
    return plan.inputs.memory or None if isinstance(plan.inputs, PlanInputs) else None


def _outcome(method: str, paths: Sequence[str], result: str, *, is_planned: bool = False) -> MergeOutcome:
    sums, number = compare_changes(paths[-1], [*paths[:-1], result]).tensors[0].sums, len(paths) - 1
    agreements = tuple(sums.pairs[model, number] for model in range(number) if (model, number) in sums.pairs)
    return MergeOutcome(method, is_planned, sums.models.get(number), agreements)
