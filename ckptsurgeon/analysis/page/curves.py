"""The curves of a run, thinned while its log is read: of a million steps no more is held than is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plain import integer, mapping, number, numbers

__all__ = ["Curves"]

POINTS = 2000
"""Of a curve: more than a screen has columns."""


class Curves:
    """Each ``every``-th step of a log, from the first, and its evaluations."""

    def __init__(self) -> None:
        self.every = 1
        self._seen = 0
        self._steps: list[tuple[int, float | None, float | None, dict[str, float]]] = []
        self._evaluations: list[tuple[int, dict[str, float]]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line of the log; what is neither a step nor an evaluation is left out."""
        step = integer(row.get("step"))
        if step is None:
            return
        if "loss" in row:
            self._add_step(step, row)
        if isinstance(row.get("dev"), Mapping):
            self._evaluations.append((step, numbers(row["dev"])))
            del self._evaluations[2 * POINTS :]

    def _add_step(self, step: int, row: Mapping[str, Any]) -> None:
        if self._seen % self.every == 0:
            rates = numbers(mapping(row.get("lr")))
            self._steps.append((step, number(row.get("loss")), number(row.get("grad_norm")), rates))
        self._seen += 1
        if len(self._steps) > POINTS:
            self._steps = self._steps[::2]
            self.every *= 2

    def to_json(self) -> dict[str, Any]:
        """Return the steps as [step, loss, gradient norm, *rates], and the evaluations as [step, figures]."""
        rates = sorted({name for *_, given in self._steps for name in given})
        return {
            "every": self.every,
            "rates": rates,
            "steps": [[*row, *(given.get(name) for name in rates)] for *row, given in self._steps],
            "evaluations": self._evaluations,
        }
