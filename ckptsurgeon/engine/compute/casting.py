"""Casts what a source gives to the dtype that a step asks for, and says what of it was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...errors import PlanError
from ...planning.plan.step import Step
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import Array
from ...tensors.ops.casts import Lost, cast, goes_to_zero
from ...util.text import escape

__all__ = ["cast_for", "named", "relevant"]


def cast_for(step: Step, values: Array, dtype: str) -> tuple[Array, Lost]:
    """Return values in a step's dtype, and how many lost their size; raises PlanError naming the source's key."""
    return named(step, cast, values, dtype)


def named(
    step: Step, how: Callable[[Array, str, str], tuple[Array, Lost]], values: Array, dtype: str
) -> tuple[Array, Lost]:
    """Return what casts values, or rounds them; raises PlanError naming the source's key."""
    try:
        return how(values, dtype, step.dtype)
    except PlanError as error:
        raise PlanError(f"{escape(step.source_key)}: {error.message}", hint=error.hint) from error


def relevant(lost: Lost, inputs: Iterable[TensorInfo], step: Step) -> Lost:
    """Return the losses, without zeros if no input is wider than the output."""
    narrowed = any(goes_to_zero(info.dtype, step.dtype) for info in inputs)
    return lost if narrowed else Lost(lost.infinite)
