"""No weight matrix has the same value everywhere; norms, biases and buffers may."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "These weights were perhaps never initialised or loaded: take them from the source."


def _run(subject: Subject) -> Iterator[Found]:
    found = [
        key
        for key, info, figures in subject.weights
        if figures.number == info.numel and figures.low == figures.high != 0
    ]
    if found:
        yield of_keys(
            Status.WARN, found, "has one value everywhere" if len(found) == 1 else "have one value everywhere", ADVICE
        )


CHECK = Check("constants", "no weight has one value everywhere", _run, without_values)
