"""Finds impossible values of batch norms (a negative variance), of scales of logits or activations, and of decays."""

from __future__ import annotations

from collections.abc import Iterator

from ....checkpoint.values.impossible_values import impossible_values
from ....checkpoint.values.scales import activation_scales, inverse_scales, unusable_scales
from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    def extent(key: str) -> tuple[float, float] | None:
        one = subject.measured.get(key)
        figures = None if one is None or key in subject.parts or one.is_of_scales else one.figures
        return (figures.low, figures.high) if figures is not None and figures.number else None

    def of_scale(key: str) -> tuple[float, float] | None:
        one = subject.measured.get(key)
        return (one.figures.low, one.figures.high) if one is not None and one.figures and one.figures.number else None

    scales = activation_scales(subject.tensors, subject.parts)
    of_cache = [key for key in scales if key not in subject.parts]  # the check of scales examines other scales
    found = (
        *impossible_values(subject.tensors, extent), *unusable_scales(of_cache, of_scale),
        *inverse_scales(scales, of_scale),
    )  # fmt: skip
    for one in found:
        yield of_keys(Status.FAIL if one.is_serious else Status.WARN, one.keys, one.said, one.todo)


CHECK = Check("impossible-values", "variances, scales of logits and decays have possible values", _run, without_values)
