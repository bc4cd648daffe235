"""No weight matrix is all zeros."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

TODO = (
    "If they were not set to zero on purpose (as new blocks are), take them from the source: these layers give nothing."
)


def _run(subject: Subject) -> Iterator[Found]:
    found = [key for key, info, figures in subject.weights if figures.zeros == info.numel]
    if found:
        yield of_keys(Status.WARN, found, "is all zeros" if len(found) == 1 else "are all zeros", TODO)


CHECK = Check("all-zeros", "no weight is all zeros", _run, without_values)
