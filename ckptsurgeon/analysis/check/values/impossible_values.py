"""No statistics of batch norms, scales of logits or decays of state spaces have values that they cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from ....checkpoint.values.impossible_values import impossible_values
from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    def extent(key: str) -> tuple[float, float] | None:
        one = subject.measured.get(key)
        figures = None if one is None or key in subject.parts or one.is_of_scales else one.figures
        return (figures.low, figures.high) if figures is not None and figures.number else None

    for one in impossible_values(subject.tensors, extent):
        yield of_keys(Status.FAIL if one.is_serious else Status.WARN, one.keys, one.said, one.todo)


CHECK = Check("impossible-values", "variances, scales of logits and decays have possible values", _run, without_values)
