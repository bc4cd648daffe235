"""No weight matrix is all zeros, nor are the codes of one."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

TODO = (
    "If they were not set to zero on purpose (as new blocks are), take them from the source: these layers give nothing."
)

CODES = "Take these codes from the quantised model again, or quantise it again."


def _run(subject: Subject) -> Iterator[Found]:
    found = [key for key, info, figures in subject.weights if figures.zeros == info.numel]
    codes = [key for key in subject.tensors if key in subject.codes and _is_zero(subject, key)]
    if codes:
        yield of_keys(Status.WARN, codes, "of codes that are all zero", CODES)
    if found:
        yield of_keys(Status.WARN, found, "is all zeros" if len(found) == 1 else "are all zeros", TODO)


def _is_zero(subject: Subject, key: str) -> bool:
    one = subject.measured.get(key)
    return one is not None and one.figures is not None and one.figures.zeros == subject.tensors[key].numel > 1


CHECK = Check("all-zeros", "no weight is all zeros", _run, without_values)
