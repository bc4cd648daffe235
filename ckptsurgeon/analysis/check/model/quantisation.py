"""The settings of quantisation describe the tensors, and no part of a quantised tensor is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..check import Check
from ..note_kinds import noted
from ..report import Found, Status
from ..subject import Subject
from ._noted import damaged, unless_noted

__all__ = ["CHECK"]

ID = "quantisation"
UNSETTLED = "its config.json has no quantization_config for"
ADVICE = "Add the quantization_config to config.json: without it, loaders take these codes as weights."


def _run(subject: Subject) -> Iterator[Found]:
    for found in noted(subject, ID):
        yield _failed(found) if UNSETTLED in found.what and _has_float_codes(subject) else found


def _failed(found: Found) -> Found:
    return replace(found, status=Status.FAIL, todo=ADVICE)


def _has_float_codes(subject: Subject) -> bool:
    """Return whether any codes are 8-bit floats: loaders use them as weights, since they have the same shape."""
    return any(subject.tensors[key].dtype.startswith("float8_") for key in subject.codes if key in subject.tensors)


CHECK = Check(ID, "quantised tensors are complete and as described", _run, unless_noted(ID, damaged))
