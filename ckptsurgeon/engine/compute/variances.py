"""Variances that a merge makes negative, as weights below zero may: no layer takes the root of such."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...planning.plan.step import Step
from ...tensors.ops.boxes import Array
from ...tensors.ops.casts import widened
from .part import Part
from .reading import read_part

__all__ = ["are_variances", "count_negative", "had_none"]

VARIANCE = "running_var"
"""The last name of the variances that torch's layers of batch normalisation keep."""


def are_variances(step: Step) -> bool:
    """Whether a step makes variances of those of several models."""
    return step.op in ("average", "merge") and step.key.rpartition(".")[2] == VARIANCE


def count_negative(values: Array, dtype: str) -> int:
    """Return how many real values, held as ``raw_dtype`` says, are below zero."""
    return int(np.count_nonzero(np.asarray(widened(values, dtype)) < 0))


def had_none(parts: Sequence[Part]) -> bool:
    """Whether no input has a negative value; they are read for it."""
    boxes = [tuple((0, size) for size in info.shape) for info, _ in parts]
    read = ((read_part(source, info, box), info.dtype) for (info, source), box in zip(parts, boxes, strict=True))
    return not any(count_negative(values, dtype) for values, dtype in read)
