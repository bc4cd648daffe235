"""Checks that no value is NaN or infinite, except in masks."""

from __future__ import annotations

from collections.abc import Iterator

from ....tensors.dtypes import DTYPES, is_masked
from ....tensors.quantised.methods import family
from ....util.text import count
from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject
from ..tensor_roles import is_scale

__all__ = ["CHECK"]

ADVICE = "Copy these tensors from an earlier checkpoint, and find out which training step or conversion caused this."


def _run(subject: Subject) -> Iterator[Found]:
    for name, what in (("nan", "NaN"), ("inf", "infinite")):
        counts = {key: number for key, number in _counts(subject, name) if number}
        if counts:
            many = f"{sum(counts.values()):,}"
            is_one = len(counts) == 1
            said = f"{'has' if is_one else 'have'} {many} {what} {'value' if many == '1' else 'values'}"
            yield of_keys(Status.FAIL, list(counts), said, ADVICE, values=sum(counts.values()))


def _counts(subject: Subject, name: str) -> Iterator[tuple[str, int]]:
    for key, one in subject.measured.items():
        if one.figures is not None and not is_scale(subject.parts.get(key, "")) and not is_masked(key):
            is_packed = key in subject.codes and family(subject.methods.get(key, "")) == "bitsandbytes"  # in any dtype
            is_float = one.is_of_scales or (DTYPES[subject.tensors[key].dtype].is_floating and not is_packed)
            yield key, getattr(one.figures, name) if is_float else 0


def _looks_at(subject: Subject) -> str:
    return count(len(subject.measured), "tensor")


CHECK = Check("not-finite", "no NaN and no infinities", _run, without_values, _looks_at)
