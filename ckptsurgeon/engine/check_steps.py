"""Checks that each step of a plan is possible: that its operation fits its shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, prod

from ..errors import PlanError
from ..methods.lora.expert_stack import experts_of, is_stack
from ..planning.mismatch.policies import cast_fault, fit, is_reshape
from ..planning.plan.coded_part import CodedPart
from ..planning.plan.rows import DonorRows
from ..planning.plan.step import Step
from ..tensors.dtypes import DTYPES
from ..util.text import escape

__all__ = ["check_step"]

_SHOWN = 3
"""How many inputs of a step an error message lists."""


def check_step(step: Step) -> None:
    """Raise PlanError if a step's operation does not fit its shapes or dtypes, for example after a user's edit."""
    if step.op == "init":
        _check_repeated(step)
        return
    if step.coded is not None:
        _check_coded(step, step.coded)
        step = step.numbers
    if step.source is None or not _FITS.get(step.op, _resizes)(step):
        raise PlanError(
            f"the plan is not possible: the operation {step.op} cannot make the tensor {escape(step.key)}, "
            f"{step.dtype} {step.shape}, {_from(step)}.",
            hint="Make a new plan with the command that wrote this plan.",
        )
    for one in step.inputs:
        fault = cast_fault(one.dtype, step.dtype) if one.dtype != step.dtype else ""
        if fault:
            raise PlanError(f"the tensor {escape(step.key)} cannot be cast from {one.dtype} to {step.dtype}: {fault}.")


def _check_repeated(step: Step) -> None:
    times = step.repeats
    if times < 1 or (times > 1 and (not step.shape or step.shape[0] % times)):
        raise PlanError(
            f"the plan is not possible: the rows of {escape(step.key)} {step.shape} cannot be repeated {times} times.",
            hint="Make a new plan with the command that wrote this plan.",
        )


def _check_coded(step: Step, part: CodedPart) -> None:
    """Raise PlanError if ``part`` of a quantised tensor, such as its codes, cannot have the step's dtype and shape."""
    from .compute.computed_codes import fits  # imports numpy, which copying does not need

    if not fits(step, part):
        raise PlanError(
            f"the plan is not possible: {escape(step.key)}, {step.dtype} {step.shape}, cannot be a part ({part.role}, "
            f"{escape(part.encoding)}) of a quantised tensor of the shape {part.shape}.",
            hint="Make a new plan with the command that wrote this plan.",
        )


def _from(step: Step) -> str:
    """Return a phrase that lists the first inputs of a step: ``from a float32 (2, 3), b float32 (2,)``."""
    if step.source is None:
        return "from no tensor"
    more = f", and {len(step.inputs) - _SHOWN} more" if len(step.inputs) > _SHOWN else ""
    return f"from {', '.join(f'{escape(one.key)} {one.dtype} {one.shape}' for one in step.inputs[:_SHOWN])}{more}"


def _resizes(step: Step) -> bool:
    """Return whether a step has the operation that its shape policy needs for the shapes of its source and its output.

    A shape policy says what to do if the two shapes differ.
    """
    found = fit(step.policy, step.source_shape, step.shape, step.source_dtype)
    return found.op == step.op and found.op != "init"


def _maps(step: Step) -> bool:
    """Return whether embedding rows can be moved between vocabularies with the shapes and the dtype of a step.

    ``step.rows`` must fit the numbers of rows in both shapes. The shapes must be equal along all other axes. If rows
    are means of other rows, the dtype must be floating-point.
    """
    have, want, axis, rows = step.source_shape, step.shape, step.axis, step.rows
    if rows is None or len(have) != len(want) or not 0 <= axis < len(want):
        return False
    alike = all(h == w for i, (h, w) in enumerate(zip(have, want, strict=True)) if i != axis)
    means = rows.composed or (rows.new == "mean" and rows.fresh)
    computes = DTYPES[step.source_dtype].is_floating or not means
    if rows.donor is not None and step.more and not _fits_donor(step, rows.donor):
        return False
    return alike and have[axis] == rows.size and want[axis] == len(rows.rows) and computes


def _fits_donor(step: Step, donor: DonorRows) -> bool:
    """Return whether the second input of a step can be the donor's embedding, from which new rows are made.

    It must be a floating-point matrix with ``donor.size`` rows, and the step must have no third input.
    """
    theirs = step.more[0].shape
    return len(step.more) == 1 and len(theirs) == len(step.shape) == 2 and theirs[0] == donor.size and _real(step)


def _merges(step: Step) -> bool:
    """Return whether the inputs of a step can be combined element by element.

    All inputs must have the output's shape (of one element: (1,) or ()) and the same kind of dtype, such as
    floating-point. Either each input has a finite weight, or there are no weights.
    """
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
    """Return whether the inputs of a step (base and LoRA factors) are real floating-point tensors whose shapes fit."""
    return step.lora is not None and _real(step) and step.lora.fits(step.shape, [one.shape for one in step.inputs])


def _factors(step: Step) -> bool:
    """Return whether a step can compute a low-rank factor of the difference or the product of its inputs."""
    return step.factor is not None and _real(step) and step.factor.fits(step.shape, [one.shape for one in step.inputs])


def _real(step: Step) -> bool:
    return all(DTYPES[one.dtype].kind == "float" and not DTYPES[one.dtype].is_packed for one in step.inputs)


def _concatenates(step: Step) -> bool:
    """Return whether the inputs of a step, one after the other along its axis, fit into its tensor.

    Either each input has a finite weight, or there are no weights. If the step transposes its inputs, they must be
    matrices. If the inputs do not fill the tensor, the rest is zeros, unless they are joined expert by expert.
    """
    turned, axis = step.policy == "transpose", step.axis
    shapes = [one.shape[::-1] if turned else one.shape for one in step.inputs]
    if (
        not (step.policy in ("", "transpose") or is_stack(step.policy))
        or not _real(step)
        or not 0 <= axis < len(step.shape)
    ):
        return False
    if turned and len(step.shape) != 2:
        return False
    alike = all(
        (*shape[:axis], *shape[axis + 1 :]) == (*step.shape[:axis], *step.shape[axis + 1 :]) for shape in shapes
    )
    fits = alike and all(len(shape) == len(step.shape) for shape in shapes)
    weighted = len(step.weights) in (0, len(shapes)) and all(map(isfinite, step.weights))
    total, experts = sum(shape[axis] for shape in shapes), experts_of(step.policy)
    divided = not is_stack(step.policy) or (experts <= total and all(shape[axis] % experts == 0 for shape in shapes))
    whole = total == step.shape[axis] if is_stack(step.policy) else total <= step.shape[axis]
    return fits and weighted and divided and whole


def _merges_by_method(step: Step) -> bool:
    """Return whether all inputs of a step are real floating-point tensors, and its policy can align their shapes."""
    if step.merge is None or not _real(step):
        return False
    if not (step.policy or step.merge.statistics) and all(one.shape == step.shape for one in step.inputs):
        return True
    from .compute.aligning import aligns  # imports numpy, which copying does not need

    return aligns(step)


def _copies(step: Step) -> bool:
    """Return whether the shapes of the source and the output are equal, or both have one element."""
    have, want = step.source_shape, step.shape
    return have == want or prod(have) == prod(want) == 1


def _averages(step: Step) -> bool:
    return _merges(step) and DTYPES[step.source_dtype].is_floating


def _takes_the_largest(step: Step) -> bool:
    return _merges(step) and not DTYPES[step.source_dtype].is_floating and not step.weights


_FITS: Mapping[str, Callable[[Step], bool]] = {
    "copy": _copies,
    "keep": lambda step: step.source_shape == step.shape,
    "map": _maps,
    "average": _averages,
    "lora": _adapts,
    "factor": _factors,
    "concat": _concatenates,
    "merge": _merges_by_method,
    "max": _takes_the_largest,
}
"""{operation of a step: the function that checks such steps}.

All other operations are policies for shapes that differ: ``_resizes`` checks them.
"""
