"""The result of ``explain`` for a merge: the models' agreement on a tensor, and the result of each merge method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..planning.plan.step import Step
from ..util.notebook import InNotebooks
from ..util.short_repr import Brief
from ..util.text import escape, listing
from .compare.changes import Agreement, ModelChange, TensorChanges
from .compare.sums import quotient

__all__ = ["ExplainedMerge", "MergeExplanation", "MergeOutcome"]


@dataclass(frozen=True, repr=False)
class MergeOutcome(Brief):
    """The tensor that a merge method makes: its distance from the base, and its share of each model's change.

    ``is_planned`` is true for the method of the plan, which has the plan's parameters; other methods have their
    defaults. ``change`` is the change of the result from the base; ``agreements`` compare the change of each model
    (first) with the change of the result (second). If the method cannot merge this tensor, ``why`` is the reason.
    """

    method: str
    is_planned: bool = False
    change: ModelChange | None = None
    agreements: tuple[Agreement, ...] = ()
    why: str = ""

    @property
    def kept(self) -> tuple[float | None, ...]:
        """The share of each model's change that the result has: the length of its projection on the change.

        It is <result, change> / <change, change>: 1 if the whole change was added, 0 if none of it was. It is None for
        a model without a change.
        """
        return tuple(quotient(one.product, one.first) if one.first.value else None for one in self.agreements)

    @property
    def changed(self) -> float | None:
        """The share of values of the result that differ from the base.

        None if the result could not be compared with the base.
        """
        return None if self.change is None or not self.change.values else self.change.changed / self.change.values

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "method": self.method,
            "planned": self.is_planned,
            "relative": None if self.change is None else self.change.relative,
            "changed": self.changed,
            "kept": list(self.kept),
            "cosine": [one.cosine for one in self.agreements],
            "why": self.why or None,
        }


@dataclass(frozen=True, repr=False)
class MergeExplanation(Brief):
    """How a plan merges a tensor. ``models`` are the names of the models; ``base`` is the name of the base, if any.

    ``changes`` are the changes of the models from the base, and ``outcomes`` the results of the methods, the plan's
    method first. If these are not known, ``why`` is the reason.
    """

    step: Step
    models: tuple[str, ...]
    base: str = ""
    changes: TensorChanges | None = None
    outcomes: tuple[MergeOutcome, ...] = ()
    why: str = ""

    def __repr__(self) -> str:
        return f"<MergeExplanation {escape(self.step.key)} {self.step.kind}>"

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as plain data."""
        step, sums = self.step, self.changes.sums if self.changes is not None else None
        return {
            "key": step.key,
            "class": step.kind,
            "dtype": step.dtype,
            "shape": list(step.shape),
            "models": list(self.models),
            "base": self.base or None,
            "merge": step.merge.to_json() if step.merge is not None else None,
            "changes": [one.relative for _, one in sorted(sums.models.items())] if sums is not None else [],
            "pairs": [
                {"models": list(pair), "cosine": one.cosine, "same_sign": one.share_of_same_sign}
                for pair, one in (sums.pairs.items() if sums is not None else ())
            ],
            "outcomes": [one.to_json() for one in self.outcomes],
            "why": self.why or None,
        }


@dataclass(frozen=True, repr=False)
class ExplainedMerge(InNotebooks):
    """The explanations of the requested tensors of a merge, in the order of the output."""

    tensors: tuple[MergeExplanation, ...]

    def __repr__(self) -> str:
        return f"<ExplainedMerge {listing([one.step.key for one in self.tensors], where='')}>"

    def to_json(self) -> dict[str, Any]:
        """Return the explanations as plain data."""
        return {"kind": "ckpt.explain_merge", "version": 1, "tensors": [one.to_json() for one in self.tensors]}
