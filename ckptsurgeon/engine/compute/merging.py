"""Merges the tensors with the same key of several models by a merge method, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import PlanError
from ...methods.merge._method import Merging, Method
from ...planning.plan.compute import Merge
from ...planning.plan.step import Step
from ...tensors.ops.casts import CastLosses, widened
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array, box_shape
from ...util.text import count, escape
from ..context import MergeContext
from .growth import RIDGE, Growths, largest_of
from .merge_inputs import MergedTensors, merge_of, method_of
from .reading import Blockwise, OutputBlock, Part, Seen, cast_for, named, read_part

__all__ = ["are_variances", "count_negative", "had_none", "merging_of"]

# A merge with negative weights may make variances negative, and layers compute the square root of variances.

VARIANCE = "running_var"
"""The last part of the keys of variances in torch's batch normalisation layers."""


def are_variances(step: Step) -> bool:
    """Return whether a step merges or averages variances of batch normalisation."""
    return step.op in ("average", "merge") and step.key.rpartition(".")[2] == VARIANCE


def count_negative(values: Array, dtype: str) -> int:
    """Return the number of values below 0; ``dtype`` is real, ``values`` have the type that ``raw_dtype`` returns."""
    return int(np.count_nonzero(np.asarray(widened(values, dtype)) < 0))


def had_none(parts: Sequence[Part]) -> bool:
    """Return whether no input contains a negative value; reads all inputs completely to find this out."""
    boxes = [tuple((0, size) for size in info.shape) for info, _ in parts]
    read = ((read_part(source, info, box), info.dtype) for (info, source), box in zip(parts, boxes, strict=True))
    return not any(count_negative(values, dtype) for values, dtype in read)


def merging_of(step: Step, parts: Sequence[Part], context: MergeContext) -> Blockwise:
    """Prepare the merge method, which may read the inputs for this, and return a function that merges one block.

    Raises PlanError if the method cannot merge these tensors, or if there is not enough memory.
    """
    merge = merge_of(step)
    method = method_of(step, context)
    _check_inputs(merge, method, len(step.combined) - merge.base)
    tensors = MergedTensors(step, parts, context)
    argument = {one.name: one.argument for one in method.parameters}
    with tensors.library.working():
        merging = method.prepare(tensors, {argument[name]: value for name, value in merge.parameters.items()})

    def block(place: OutputBlock, seen: Seen | None) -> tuple[Array, CastLosses]:
        inner = tensors.inner[place.index]
        if inner is None:
            return tensors.kept(place.box)
        values, lost = _finished(step, merge, merging, tensors, inner, seen, context.growths)
        if inner.box == place.box:
            return values, lost
        whole, more = tensors.kept(place.box)
        whole[tuple(slice(0, size) for size in values.shape)] = values
        return whole, lost + more

    return block


def _check_inputs(merge: Merge, method: Method, number: int) -> None:
    """Raise PlanError if a plan, which a user may have edited, has inputs that its merge method does not take.

    The number of models may be wrong, a base may be missing or not allowed, or the statistics may be of another kind.
    """
    least, most = method.models
    if merge.statistics.partition(" ")[0] != method.statistics:
        raise PlanError(
            f"the plan has {merge.statistics or 'no'} statistics, but the merge method {escape(merge.method)} uses "
            f"{method.statistics or 'none'}.",
            hint="Make a new plan.",
        )
    needs, takes = method.base == "required", method.base in ("required", "optional")
    if (
        (needs and not merge.base)
        or (merge.base and not takes)
        or number < least
        or (most is not None and number > most)
    ):
        with_base = " and a base" if merge.base else " without a base"
        wanted = f"at least {least}" if most is None else f"{least}" if least == most else f"{least} to {most}"
        base = {"required": "and a base", "optional": "and perhaps a base"}.get(method.base, "and no base")
        raise PlanError(
            f"the plan merges {count(number, 'model')}{with_base}, but the merge method {escape(merge.method)} needs "
            f"{wanted} {base}.",
            hint="Make a new plan.",
        )


def _finished(
    step: Step, merge: Merge, merging: Merging, tensors: MergedTensors, inner: OutputBlock, seen: Seen | None,
    growths: Growths,
) -> tuple[Array, CastLosses]:  # fmt: skip
    is_measured = RIDGE in merge.parameters
    with tensors.library.working():
        at = tensors.slice(inner, seen)
        before = largest_of(at.models if at.base is None else (*at.models, at.base)) if is_measured else 0.0
        values = tensors.library.get(merging(at))
    wanted = box_shape(inner.box)
    if values.shape != wanted:
        raise PlanError(
            f"the merge method {escape(merge.method)} returned an array of the shape {values.shape} for inputs of the "
            f"shape {wanted}; it must return an array of the same shape."
        )
    if is_measured:
        growths.add(step.key, inner.index, before, largest_of([values]))
    lost = CastLosses(_overflown(values, tensors, inner)) if not np.isfinite(values).all() else CastLosses()
    made, more = _rounded(step, merge, values)
    return made, lost + more


def _overflown(values: Array, tensors: MergedTensors, inner: OutputBlock) -> int:
    """Return the number of values of a block that are infinite or NaN although all inputs are finite at this index.

    This reads the inputs again.
    """
    at = tensors.slice(inner)
    inputs = [tensors.library.get(one) for one in (*at.models, *([at.base] if at.base is not None else []))]
    finite = np.logical_and.reduce([np.isfinite(one) for one in inputs])
    return int(np.count_nonzero(~np.isfinite(values) & finite))


def _rounded(step: Step, merge: Merge, values: Array) -> tuple[Array, CastLosses]:
    if merge.compute == "float64" or step.dtype == "float8_e8m0fnu":  # unsigned: ``rounded`` refuses negative values
        return named(step, rounded, values.astype("<f8", copy=False), "float64")
    return cast_for(step, values.astype("<f4", copy=False), "float32")
