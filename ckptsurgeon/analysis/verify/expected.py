"""The expected content of an output, from its recipe or from a plan, and the state of a verification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...engine.apply_settings import MergeContext
from ...planning.plan.files import PlanSource, PlanTarget
from ...planning.plan.plan import Plan
from ...planning.plan.receipt import Failure
from ...planning.plan.rows import VocabularyRows
from ...planning.recipe import Recipe, RecipeEntry
from ...planning.recipe_text import recipe_entry
from ...util.text import escape, shape_text

__all__ = ["Check", "Expected", "check_plan", "difference_of", "expected_of_plan", "expected_of_recipe"]


@dataclass(frozen=True)
class Expected:
    """The expected content of an output: how each tensor is made, and from which sources.

    ``sources`` maps the index of each source to its open checkpoint; ``absent`` maps the index of each missing source
    to the reason. ``seal`` is a digest of all bytes of the output that belong to no tensor; '' if there is none.
    """

    tensors: Mapping[str, RecipeEntry]
    sources: Mapping[int, Checkpoint]
    absent: Mapping[int, str]
    seal: str = ""
    seed: int | None = None
    has_checksums: bool = True
    rows: VocabularyRows | None = None
    vocabularies: tuple[VocabularyRows, ...] = ()
    said: Recipe | None = None
    """The recipe that is stored in the output; None without one."""
    keeper: int | None = None
    """The index of the source that is the destination itself; None if the destination is a configuration."""
    context: MergeContext = field(default_factory=MergeContext)
    """The settings with which tensors are computed again."""

    @cached_property
    def factors(self) -> Mapping[Any, Mapping[str, str]]:
        """The keys of the low-rank factors, as {difference: {"A": key, "B": key}}; see ``difference_of``."""
        pairs: dict[Any, dict[str, str]] = {}
        for key, made in self.tensors.items():
            if made.factor is not None:
                pairs.setdefault(difference_of(made), {}).setdefault(made.factor.part, key)
        return pairs


def difference_of(made: RecipeEntry) -> tuple[Any, ...]:
    """Return a value that identifies the weight difference from which a low-rank factor was extracted.

    Both factors A and B of one difference have the same value. ``made`` is the recipe's entry for the factor.
    """
    assert made.factor is not None
    return made.source, made.source_key, made.more, made.factor.rank, made.factor.transposed


def expected_of_recipe(
    recipe: Recipe, sources: Mapping[int, Checkpoint], absent: Mapping[int, str], context: MergeContext
) -> Expected:
    """Return the expected content of an output, from its recipe.

    ``sources`` maps the index of each source to its open checkpoint; ``absent`` maps the index of each missing source
    to the reason.
    """
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
    """Return the expected content of an output, from a plan. A plan has no checksums.

    ``sources`` maps the index of each source to its open checkpoint; ``absent`` maps the index of each missing source
    to the reason.
    """
    made = {step.key: recipe_entry(step) for step in plan.steps}
    return Expected(
        made, sources, absent, has_checksums=False, rows=plan.rows, vocabularies=plan.vocabularies,
        keeper=_keeper(plan.sources), context=replace(context, seed=plan.seed),
    )  # fmt: skip


# The state of a verification.


@dataclass
class Check:
    """An output that is being verified, and the results so far.

    ``left_out`` maps the keys of tensors that are not compared to the reason. ``done`` and ``total`` are numbers of
    bytes. Four fields are numbers of tensors: ``compared`` (equal, bit for bit, to the tensors computed again),
    ``near`` (with nearly equal values), ``products`` (low-rank factors with an equal product) and ``drawn`` (drawn at
    random). ``nan`` and ``inf`` are numbers of values; ``unsound`` are the keys of the tensors with such values, except
    masks.
    """

    output: Checkpoint
    expected: Expected
    progress: Callable[[int, int], None]
    total: int
    left_out: Mapping[str, str]
    done: int = 0
    failed: list[Failure] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)
    compared: int = 0
    drawn: int = 0
    near: int = 0
    products: int = 0
    nan: int = 0
    inf: int = 0
    unsound: dict[str, None] = field(default_factory=dict)

    def fail(self, key: str, why: str) -> None:
        """Record that a tensor is wrong, or the output as a whole if ``key`` is empty; ``why`` is the reason."""
        self.failed.append(Failure(key, why))

    def advance(self, nbytes: int) -> None:
        """Report to the progress callback that ``nbytes`` more bytes were read."""
        self.done += nbytes
        self.progress(self.done, self.total)


# Comparison of an output and its recipe with a plan.


def check_plan(check: Check, plan: Plan) -> None:
    """Compare an output's dtypes, shapes, vocabularies and sources with a plan; record differences as failures."""
    for fault in _other_than_planned(check.expected.said, plan) if check.expected.said is not None else ():
        check.fail("", fault)
    if check.expected.seed not in (None, plan.seed):
        check.fail("", f"was initialised with seed {check.expected.seed}, but the seed in the plan is {plan.seed}")
    planned = {step.key: step for step in plan.steps}
    for key in check.expected.tensors.keys() - planned.keys():
        check.fail(key, "is not in the plan")
    for key, step in planned.items():
        info, made = check.output.get(key), check.expected.tensors.get(key)
        if info is not None and (info.dtype, info.shape) != (step.dtype, step.shape):
            check.fail(
                key,
                f"is {info.dtype} {shape_text(info.shape)}, but the plan says {step.dtype} {shape_text(step.shape)}",
            )
        if made is None:
            check.fail(key, "is in the plan, but not in the recipe")
        elif made._replace(crc32=0, implied=False) != recipe_entry(step):
            check.fail(
                key, f"was made by {made.op} from {made.source_key or 'no source'}, but the plan makes it differently"
            )


def _other_than_planned(said: Recipe, plan: Plan) -> Iterator[str]:
    """Yield the differences between an output's recipe and a plan: vocabulary, metadata, sources."""
    if (said.rows, said.vocabularies) != (plan.rows, plan.vocabularies):
        yield "was made with a different vocabulary than the plan says"
    if dict(said.metadata or {}) != dict(plan.metadata):
        yield "has different metadata than the plan says"
    if said.target.companions and _files(said.target) != _files(plan.target):
        yield "has different files next to the weights than the plan says"
    if len(said.sources) != len(plan.sources):
        yield f"was made from {len(said.sources)} sources, but {len(plan.sources)} were planned"
        return
    for made, planned in zip(said.sources, plan.sources, strict=True):
        if _content(made) != _content(planned):
            yield f"was made from a different {escape(planned.name)} than the plan says"
        elif list(map(dict, made.operations)) != list(map(dict, planned.operations)):
            yield f"was made by different operations on {escape(planned.name)} than the plan says"


def _files(target: PlanTarget) -> list[tuple[str, int, str]]:
    return [(one.name, one.size, one.sha256) for one in target.companions]


def _content(source: PlanSource) -> tuple[Any, ...]:
    """Return a value that identifies the content of a source, independent of its path."""
    return source.root, source.stripped, [(file.name, file.size, file.sha256) for file in source.files]
