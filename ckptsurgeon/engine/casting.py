"""Casts what a source gives to the dtype that a step asks for."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import PlanError
from ..ops import Array, Lost, cast
from ..plan import Step
from ..text import escape

__all__ = ["cast_for", "named"]


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
