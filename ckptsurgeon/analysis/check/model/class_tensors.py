"""The class that config.json names has the tensors of the weights, in their shapes."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "ckpt fits compares each tensor with the class: restore what is missing, or correct config.json."
LEFT_ALONE = "ckpt fits compares each tensor with the class; what it does not use has no effect."
NOT_BUILT = "Correct config.json, or check with the version of transformers that the model needs."


def _run(subject: Subject) -> Iterator[Found]:
    yield from (Found(Status.FAIL, one, ADVICE) for one in subject.of_class.faults)
    for one in subject.of_class.remarks:
        yield Found(Status.WARN, one, NOT_BUILT if "cannot be built" in one else LEFT_ALONE)


def _against(subject: Subject) -> str:
    return subject.fault or subject.of_class.unknown


CHECK = Check("class-tensors", "the class in config.json has these tensors", _run, _against)
