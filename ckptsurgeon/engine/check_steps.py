"""Whether the steps of a plan can be: their operations must fit their shapes and dtypes."""

from __future__ import annotations

from math import isfinite, prod

from ..errors import PlanError
from ..plan import Step
from ..policies import cast_fault, fit, is_reshape
from ..tensors import DTYPES
from ..text import escape

__all__ = ["check_step"]


def check_step(step: Step) -> None:
    """A plan may have been written by hand: its operations must fit its shapes."""
    have, want = step.source_shape, step.shape
    if step.op == "init":
        return
    fits = {
        "copy": prod(have) == prod(want) and (have == want or prod(want) == 1),
        "keep": have == want,
        "map": _maps(step),
        "average": _merges(step) and DTYPES[step.source_dtype].is_floating,
        "lora": _adapts(step),
        "factor": _factors(step),
        "merge": _merges_by_method(step),
        "max": _merges(step) and not DTYPES[step.source_dtype].is_floating and not step.weights,
    }
    possible = fits[step.op] if step.op in fits else _resizes(step)
    if step.source is None or not possible:
        raise PlanError(f"the plan cannot be: {escape(step.key)} by {step.op} from {have} to {want}.")
    for one in step.inputs:
        fault = cast_fault(one.dtype, step.dtype)
        if fault:
            raise PlanError(f"{escape(step.key)} cannot go from {one.dtype} to {step.dtype}: {fault}.")


def _resizes(step: Step) -> bool:
    """Whether the policy of a step fits its shapes, by the operation that the step names."""
    found = fit(step.policy, step.source_shape, step.shape, step.source_dtype)
    return found.op == step.op and found.op != "init"


def _maps(step: Step) -> bool:
    """Whether the rows of a vocabulary are those of the shapes, which are alike along all other axes."""
    have, want, axis, rows = step.source_shape, step.shape, step.axis, step.rows
    if rows is None or len(have) != len(want) or not 0 <= axis < len(want):
        return False
    alike = all(h == w for i, (h, w) in enumerate(zip(have, want, strict=True)) if i != axis)
    means = rows.composed or (rows.new == "mean" and rows.fresh)
    computes = DTYPES[step.source_dtype].is_floating or not means
    return alike and have[axis] == rows.size and want[axis] == len(rows.rows) and computes


def _merges(step: Step) -> bool:
    """Whether all inputs of a step have its shape, numbers of one kind that are not packed, a weight each or none."""
    inputs, kind = step.inputs, DTYPES[step.source_dtype].kind
    alike = all(
        (one.shape == step.shape or is_reshape(one.shape, step.shape)) and DTYPES[one.dtype].kind == kind
        for one in inputs
    )
    return (
        alike
        and not any(DTYPES[one.dtype].is_packed for one in inputs)
        and len(step.weights) in (0, len(inputs))
        and all(map(isfinite, step.weights))
    )


def _adapts(step: Step) -> bool:
    """Whether all inputs of a step are real numbers, with the shapes that its adapters need."""
    return step.lora is not None and _real(step) and step.lora.fits(step.shape, [one.shape for one in step.inputs])


def _factors(step: Step) -> bool:
    """Whether a step is a factor of the difference of its inputs."""
    return step.factor is not None and _real(step) and step.factor.fits(step.shape, [one.shape for one in step.inputs])


def _real(step: Step) -> bool:
    return all(DTYPES[one.dtype].kind == "float" and not DTYPES[one.dtype].is_packed for one in step.inputs)


def _merges_by_method(step: Step) -> bool:
    """Whether all inputs of a step are real floating numbers that its policy makes fit."""
    if step.merge is None:
        return False
    from .aligning import aligns  # with numpy, which copying does without

    dtypes = [DTYPES[one.dtype] for one in step.inputs]
    return all(one.kind == "float" and not one.is_packed for one in dtypes) and aligns(step)
