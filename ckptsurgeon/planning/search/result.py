"""The trials of a search, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...util.notebook import InNotebooks
from ...util.text import count, escape
from ..plan.receipt import Receipt, Verification
from .space import Parameter

__all__ = ["BEGUN", "DONE", "FAILED", "SearchResult", "Trial"]

BEGUN, DONE, FAILED = "begun", "done", "failed"
"""The states of a trial."""


@dataclass
class Trial:
    """A trial: its number, counted from 1, its parameter values, and its score (None if it failed or is not done).

    ``why`` is the reason why it failed. ``merge_s`` and ``evaluate_s`` are the times of its two parts in seconds.
    """

    number: int
    values: dict[str, Any]
    state: str = BEGUN
    score: float | None = None
    why: str = ""
    merge_s: float = 0.0
    evaluate_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the trial as plain data."""
        return {
            "trial": self.number,
            "state": self.state,
            "values": self.values,
            "score": self.score,
            "why": self.why,
            "merge_s": round(self.merge_s, 3),
            "evaluate_s": round(self.evaluate_s, 3),
        }


@dataclass(frozen=True, repr=False)
class SearchResult(InNotebooks):
    """The result of a search: its trials, the best trial, and the output that was made with the values of this trial.

    ``recipe`` is the file of an ordinary recipe with the best values, and ``test`` the score of the output by the test
    command or split, None if there was none. ``maximize`` is None if only a task knows which scores are better, and it
    was not asked, because there are no trials. ``receipt`` and ``verification`` belong to the output; they are None if
    nothing was written.
    """

    study: str
    source: str
    sampler: str
    seed: int
    metric: str
    maximize: bool | None
    parameters: tuple[Parameter, ...]
    trials: tuple[Trial, ...] = ()
    best: Trial | None = None
    recipe: str = ""
    test: float | None = None
    receipt: Receipt | None = None
    verification: Verification | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        best = f", best {self.best.score:.6g}" if self.best is not None and self.best.score is not None else ""
        return f"<SearchResult {escape(self.source)}: {count(len(self.trials), 'trial')}{best}>"

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data, for JSON."""
        return {
            "kind": "ckpt.search",
            "version": 1,
            "study": self.study,
            "source": self.source,
            "sampler": self.sampler,
            "seed": self.seed,
            "metric": self.metric,
            "maximize": self.maximize,
            "parameters": [one.to_json() for one in self.parameters],
            "trials": [one.to_json() for one in self.trials],
            "best": self.best.number if self.best is not None else None,
            "recipe": self.recipe or None,
            "test": self.test,
            "output": self.receipt.output if self.receipt is not None else None,
            "compared": self.verification.compared if self.verification is not None else None,
            "notes": list(self.notes),
        }
