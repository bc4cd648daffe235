"""Surveys a merge before it is made: the agreement of the models' changes, and the results of merge methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ...analysis.compare.changes import Changes, TensorChanges
from ...analysis.compare.measure_changes import StoredTensor, measure_changes, why_not_numbers
from ...analysis.merge_survey import MergeSurvey, conflicts_of
from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PlanError
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...tensors.dtypes import DTYPES
from ...util.text import listing
from ..inputs.argument_types import Progress
from ..inputs.reopening import inputs_of
from .explain import why_not_compared
from .method_samples import MergedTensor, sampled_methods

__all__ = ["OpenSurvey", "survey_merge"]


@dataclass(frozen=True)
class OpenSurvey:
    """The survey of a plan, the open base, and all open sources of the plan."""

    survey: MergeSurvey
    base: Checkpoint
    sources: Sequence[Checkpoint]

    @property
    def stored(self) -> Checkpoint:
        """The base as it is stored: with its codes if it is quantised."""
        return self.base.stored or self.base


def survey_merge(plan: Plan, progress: Progress | None = None) -> OpenSurvey:
    """Return a survey of the models of a merge before it is made.

    All values are read once for the changes; then samples of them are merged by each method. The open inputs of the
    plan stay open. Raises ConfigError if the plan is not a merge, or has no base or no second model; PlanError if no
    tensor can be compared; and the errors of ``inputs_of``.
    """
    _check(plan)
    inputs = inputs_of(plan)
    found = _compared(plan, inputs.sources)
    every = {key: (one.base, dict(sorted(one.models.items()))) for key, one in found.tensors.items()}
    if not every:
        why = next(iter(found.not_compared.values()), "nothing is merged")
        raise PlanError(
            f"no tensor of this merge can be compared: {why}.", hint="Merge the models without a page: ckpt merge."
        )
    ((base_name, base),) = found.bases.items()
    measured, refused = list[TensorChanges](), dict(found.not_compared)
    for key, sums in measure_changes(every, progress):
        if isinstance(sums, str):
            refused[key] = sums
        else:
            measured.append(TensorChanges(key, sums, is_weight=DTYPES[every[key][0].info.dtype].is_floating))
    changes = Changes(base_name, found.names, tuple(measured), not_compared=refused, notes=tuple(found.notes))
    merged = [found.tensors[one.key] for one in measured if one.is_weight]
    methods, sampled = sampled_methods(merged, len(found.names), inputs.plugins, plan.seed)
    values = sum(prod(one.base.info.shape) for one in merged)
    return OpenSurvey(MergeSurvey(changes, conflicts_of(changes), methods, sampled, values), base, inputs.sources)


def _check(plan: Plan) -> None:
    if plan.verb != "merge":
        raise ConfigError(
            f"a page about a plan needs a plan of merge, but this is a plan of {plan.verb}.",
            hint="Make the plan with merge.",
        )
    merges = [step for step in plan.steps if step.merge is not None]
    if merges and not any(step.merge is not None and step.merge.base for step in merges):
        method = merges[0].merge.method if merges[0].merge is not None else ""
        raise ConfigError(
            f"the method {method} has no base, so the models have no changes to compare.",
            hint="Name a method with a base, as in --method task_arithmetic --base BASE: the page then compares "
            "methods without a base, too.",
        )
    if merges and max(len(step.combined) for step in merges if step.merge is not None and step.merge.base) < 3:
        raise ConfigError(
            "this merge has one model, but two are needed to compare changes.",
            hint="Name two or more models. ckpt view BASE MODEL shows how one model differs from its base.",
        )


@dataclass(frozen=True)
class _Compared:
    """The tensors of a merge that can be compared, by the key in the base, and the reasons why others cannot.

    ``names`` are the paths of the models, in the order in which the plan merges them. ``bases`` are the open bases by
    their paths, decoded if they are quantised.
    """

    tensors: Mapping[str, MergedTensor]
    not_compared: Mapping[str, str]
    notes: Sequence[str]
    names: tuple[str, ...]
    bases: Mapping[str, Checkpoint]


def _compared(plan: Plan, sources: Sequence[Checkpoint]) -> _Compared:
    """Return the tensors of a merge that can be compared; raises PlanError if the merge has several bases."""
    models = _models(plan)
    tensors, refused, again = dict[str, MergedTensor](), dict[str, str](), list[str]()
    opened = dict[str, Checkpoint]()
    for step in _steps(plan):
        infos = [sources[one.source][one.key] for one in step.combined]
        if why := why_not_compared(step) or next(filter(None, map(why_not_numbers, infos)), ""):
            refused[step.key] = why
        elif step.keeper.key in tensors:
            again.append(step.key)
        else:
            source = step.combined[-1].source
            if _path(plan, source) not in opened or sources[source].stored is not None:
                opened[_path(plan, source)] = sources[source]
            tensors[step.keeper.key] = _merged(step, [models[one] for one in _given(plan, step)], sources)
    if len(opened) > 1:
        raise PlanError(
            f"this merge has several bases: {listing(list(opened), where='')}.",
            hint="Give all models the same base: a page compares their changes from one base.",
        )
    return _Compared(tensors, refused, _notes(again), tuple(name for name, _ in models), opened)


def _notes(again: Sequence[str]) -> Sequence[str]:
    """Return the note on the tensors ``again``; [] if there are none.

    These tensors are left out because an earlier tensor is merged with the same tensor of the base.
    """
    said = "these tensors are merged with a tensor of the base that is used more than once, and are left out: "
    return [f"{said}{listing(again, 3, where='')}"] if again else []


def _models(plan: Plan) -> dict[tuple[str, int], int]:
    """Return {(path, number): index of the model}, for all models of the merge, in the order of their paths.

    The number tells apart models with the same path: it is 0 for the first of them.
    """
    order = list(dict.fromkeys(_path(plan, source) for source in range(len(plan.sources))))
    every = {one for step in _steps(plan) if not why_not_compared(step) for one in _given(plan, step)}
    ranked = sorted(every, key=lambda one: (order.index(one[0]), one[1]))
    return {one: index for index, one in enumerate(ranked)}


def _steps(plan: Plan) -> Iterator[Step]:
    """Yield the steps that merge values, one for each weight.

    A quantised weight, which is stored as several tensors, has several steps in the plan; only one of them is yielded.
    """
    seen = set[str]()
    for step in plan.steps:
        numbers = step.numbers
        if numbers.merge is not None and not step.tied_to and numbers.key not in seen:
            seen.add(numbers.key)
            yield numbers


def _merged(step: Step, models: Sequence[int], sources: Sequence[Checkpoint]) -> MergedTensor:
    stored = [StoredTensor(sources[one.source], one.key) for one in step.combined]
    assert step.merge is not None
    return MergedTensor(step.key, stored[-1], dict(zip(models, stored, strict=False)), step.merge)


def _path(plan: Plan, source: int) -> str:
    """Return the path of a source, or its name if it has none.

    A quantised model may be two sources, as stored and decoded; both have the same path.
    """
    return plan.sources[source].path or plan.sources[source].name


def _given(plan: Plan, step: Step) -> list[tuple[str, int]]:
    """Return (path, number among the models with this path) for each model of a step; the numbers begin at 0."""
    turns = Counter[str]()
    found = []
    for one in step.combined[:-1]:
        path = _path(plan, one.source)
        found.append((path, turns[path]))
        turns[path] += 1
    return found
