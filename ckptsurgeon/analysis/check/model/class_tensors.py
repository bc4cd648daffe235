"""Checks that the weights have the tensors and shapes of the model class that config.json names."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "ckpt fits compares each tensor with the class: restore the missing tensors, or correct config.json."
OTHERS = "ckpt fits compares each tensor with the class; tensors that the class does not use have no effect."
UNBUILT = "Correct config.json, or check with the version of transformers that the model needs."


def _run(subject: Subject) -> Iterator[Found]:
    yield from (Found(Status.FAIL, one, ADVICE) for one in subject.of_class.faults)
    yield from (Found(Status.WARN, one, OTHERS) for one in subject.of_class.remarks)
    if subject.of_class.refused:
        yield Found(Status.FAIL, subject.of_class.refused, UNBUILT)
    if subject.of_class.unbuilt:
        yield Found(Status.WARN, subject.of_class.unbuilt, UNBUILT)


def _against(subject: Subject) -> str:
    return subject.fault or subject.of_class.unknown


CHECK = Check("class-tensors", "the class in config.json has these tensors", _run, _against)
