"""The class that config.json names has the tensors of the weights, in their shapes."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "ckpt fits compares each tensor with the class: restore what is missing, or correct config.json."
LEFT_ALONE = "ckpt fits shows these tensors. They have no effect in this class."


def _run(subject: Subject) -> Iterator[Found]:
    yield from (Found(Status.FAIL, one, ADVICE) for one in subject.of_class.faults)
    yield from (Found(Status.WARN, one, LEFT_ALONE) for one in subject.of_class.remarks)


def _against(subject: Subject) -> str:
    return subject.fault or subject.of_class.unknown


CHECK = Check("class-tensors", "the class in config.json has these tensors", _run, _against)
