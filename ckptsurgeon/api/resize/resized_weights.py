"""Plans the weights of a resized model from the changes of its tensors, and writes the notes of the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...destinations.module_kinds import module_kinds
from ...errors import PlanError
from ...planning.keys.spelling import numberless, quoted
from ...planning.plan.plan import Plan
from ...planning.plan.step import REPEAT
from ...planning.resizing.axes import grouped
from ...planning.resizing.change import ROUNDED
from ...planning.resizing.depth import final_keys
from ...planning.target import TargetSpec
from ...planning.transplant.options import Options
from ...storage.read.spec import SourceSpec
from ...tensors.dtypes import DTYPES, dtype_named
from ...util.notes import reworded
from ...util.text import escape, listing
from ..model_folder.config_differences import DIFFERENT
from ..transplant.donor.rows import with_donor
from ..transplant.transplant import TransplantRequest, plan_into
from .found_changes import FoundChanges
from .network import AskedNetwork
from .optimizer.network import ResizedNetwork
from .request import Request
from .source_names import computed_tensors
from .stages import Stages

__all__ = ["ResizedWeights"]

_OTHER_LAYERS = (
    "The layers of this model do not all have the same tensors: check the source with ckpt check, or choose other "
    "layers with --layers."
)


@dataclass(frozen=True)
class ResizedWeights:
    """Makes the plan of the output's weights, with its notes, from the request, the network and the found changes."""

    asked: Request
    network: AskedNetwork
    found: FoundChanges

    def plan(self) -> Plan:
        """Return the plan of the weights, with its notes; raises PlanError if the output cannot be made."""
        plan = self._transplanted()
        vocabulary = self.network.vocabulary
        if vocabulary is not None and vocabulary.donor is not None and vocabulary.new is not None:
            plan = with_donor(plan, vocabulary.donor, vocabulary.new.new.tokens, self._last)
        self._check_complete(plan)
        return self._reported(self._with_repeats(plan))

    def moments(self) -> ResizedNetwork:
        """Return the changes of the weights in the form that the moments of their gradients need."""
        vocabulary = self.network.vocabulary
        return ResizedNetwork(
            self._first, self._last, module_kinds(self._first), self._changing_rows,
            {} if self._repeated else self._policies, frozenset(key for pair in self._untied for key in pair),
            vocabulary is not None and vocabulary.new is not None,
            frozenset(key for change in self.found.changes for key in change.unlike),
        )  # fmt: skip

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the recipe in the output records."""
        return self.asked.arguments(self.network.given, self.network.kept)

    @cached_property
    def said(self) -> list[str]:
        """A note on each change: its description, and whether the outputs stay equal."""
        had, is_tested = self.found.source.dtypes, self.found.stages.is_tested
        given = dtype_named(self.asked.dtype) if self.asked.dtype and self.asked.dtype != "keep" else ""
        dtype = given or next((one for one in ROUNDED if one in had), "")
        is_cast = bool(given) and any(DTYPES[one].bits > DTYPES[given].bits for one in had)
        said = [change.note(is_tested=is_tested, dtype=dtype, is_cast=is_cast) for change in self.found.changes]
        return [self.network.as_given(note) for note in said]

    @property
    def _first(self) -> TargetSpec:
        return self.found.source.network

    @property
    def _last(self) -> TargetSpec:
        return self.found.stages.last

    @cached_property
    def _untied(self) -> list[tuple[str, str]]:
        """(key, other key) of tensors that are tied in the source's network, but not in the network of the output."""
        first, last = self._first.ties, self._last
        pairs = [(owner, alias) for alias, owner in first.items() if alias in last.tensors]
        return [(owner, alias) for owner, alias in pairs if last.ties.get(alias, alias) != last.ties.get(owner, owner)]

    @cached_property
    def _changing_rows(self) -> list[Mapping[str, Any]]:
        """The operations that change tensors; they run after the operations that only rename tensors."""
        rows: list[Mapping[str, Any]] = list(self.found.stages.splits)
        rows += [{"copy": quoted(owner), "into": [quoted(owner), quoted(alias)]} for owner, alias in self._untied]
        keys = [key for key in self.found.stages.keys if key not in self.found.source.computed]
        for change in self.found.changes:
            rows += [*grouped(change.rows, keys), *change.after]
        return rows

    @cached_property
    def _policies(self) -> dict[str, str]:
        """{pattern without numbers: the policy that adds initialised elements}."""
        found: dict[str, str] = {}
        for key, policy in (row for change in self.found.changes for row in change.policies.items()):
            found[numberless(key)] = max(policy, found.get(numberless(key), ""), key=len)  # the longer one names parts
        return found

    @cached_property
    def _repeated(self) -> dict[str, int]:
        return {key: times for change in self.found.changes for key, times in change.repeated.items()}

    def _options(self) -> Options:
        source, changes, vocabulary = self.found.source, self.found.changes, self.network.vocabulary
        options = Options.of(
            exclude=[*source.stored_twice, *(key for change in changes for key in change.left)],
            rules=[rule for change in changes for rule in change.renamed],
            on_mismatch=self._policies, on_missing="init" if source.computed else self.found.stages.on_missing,
            dtype=self.asked.dtype or source.dtype,
        )  # fmt: skip
        return replace(options, vocabulary=vocabulary.options if vocabulary else None)

    def _transplanted(self) -> Plan:
        """Return the plan that transplants the results of the operations into the network of the output.

        Raises PlanError, with a hint for ``resize``, if the results do not fit into this network.
        """
        asked, vocabulary = self.asked, self.network.vocabulary
        request = TransplantRequest(
            seed=asked.seed, arguments=self.arguments, root=asked.root,
            rows=[*self.found.source.rows, *self._changing_rows],
            others=tuple(vocabulary.lists) if vocabulary else (), change=vocabulary.new if vocabulary else None,
            by_place=vocabulary is None or vocabulary.new is None,
        )  # fmt: skip
        try:
            return plan_into([SourceSpec(asked.path)], self._last, self._options(), request)
        except PlanError as error:  # the hints of transplant name options that resize lacks
            hint = _OTHER_LAYERS if asked.layers else "Check the source with ckpt check."
            raise PlanError(error.message, hint=hint, details=error.details) from None

    def _check_complete(self, plan: Plan) -> None:
        """Raise PlanError if tensors would be initialised that no chosen layer of the source has."""
        if not (self.found.source.computed and isinstance(self.found.stages, Stages)):
            return
        made = computed_tensors({}, self._last)
        lost = [step.key for step in plan.steps if step.reason == "missing" and step.key not in made]
        if lost:
            raise PlanError(
                f"the output needs {listing(lost)}, which none of the chosen layers of the source has.",
                hint="Choose other layers with --layers.",
            )

    def _with_repeats(self, plan: Plan) -> Plan:
        """Return the plan with the policy that repeats each initialised row, for the tensors in ``Change.repeated``."""
        policies = {key: f"{REPEAT}:{times}" for key, times in self._repeated.items()}
        steps = (replace(step, policy=policies.get(step.key, step.policy)) for step in plan.steps)
        return replace(plan, steps=tuple(steps)) if policies else plan

    def _reported(self, plan: Plan) -> Plan:
        """Return ``plan``, made by the transplant, as a plan of ``resize``: with its verb, fields and notes."""
        overrides = self.found.stages.overrides
        target = replace(plan.target, overrides=overrides)
        equal = (*plan.equal, *self.found.source.equal)
        return replace(plan, verb="resize", target=target, equal=equal, notes=tuple(self._notes(plan.notes, overrides)))

    def _notes(self, others: Sequence[str], overrides: Mapping[str, Any]) -> Iterator[str]:
        """Yield the notes on changes, then ``others``, the notes of the transplant."""
        yield from self.said
        yield from self.network.base.said(list(overrides), overrides)
        for owner, alias in self._untied:
            yield f"{escape(alias)} is a copy of {escape(owner)}, to which it was tied"
        yield from map(self.network.as_given, (*self.found.stages.said, *self.found.notes))
        asked_for = [note for note in others if note.startswith(DIFFERENT)]
        yield from (reworded(note, final_keys(note)) for note in others if note not in asked_for)
