"""Computes many small tensors as one, if their steps treat each element alone.

A model with experts may have a hundred thousand small tensors, and each would take some forty calls of NumPy. If there
is a problem (a value that becomes infinite, an integer that does not fit), the tensors are computed again one at a
time, so that the message can name the tensor.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from ...errors import PlanError
from ...planning.plan.step import Step
from ...tensors.composition import join
from ...tensors.info import Storage, TensorInfo
from ...tensors.ops.casts import count_special
from ...tensors.ops.regions import Array
from ..context import MergeContext
from ..run import PlanRun
from .compute import computed_blocks, takes_numbers
from .merge_inputs import device_of, merge_of, method_of
from .reading import Part

__all__ = ["computed_together", "grouped"]


FEW = 1 << 14
"""Most elements of a tensor that is computed together with others."""

TOGETHER = 1 << 16
"""About the most elements of all tensors that are computed together."""


def grouped(run: PlanRun, context: MergeContext) -> Iterator[list[tuple[Step, list[Part]]]]:
    """Yield groups of steps that can be computed together, each step with its inputs; steps that draw are left out."""
    group: list[tuple[Step, list[Part]]] = []
    last, size = None, 0
    for step in run.others:
        if step.source is None or run.draws(step):
            continue
        parts = run.parts(step)
        kind = _kind(step, parts, context)
        if group and (kind is None or kind != last or size > TOGETHER):
            yield group
            group, size = [], 0
        group.append((step, parts))
        last, size = kind, size + prod(step.shape)
    if group:
        yield group


def _kind(step: Step, parts: Sequence[Part], context: MergeContext) -> Hashable:
    """Return what all tensors of a group must have in common; None if this tensor must be computed alone."""
    size = prod(step.shape)
    if not 0 < size <= FEW or step.policy or not _is_elementwise(step, context):
        return None
    for info, _ in parts:
        storage = info.storage
        if storage is None or not info.is_plain or info.numel != size or storage.has_checksum:
            return None
    return step.op, step.dtype, step.weights, id(step.merge), tuple((info.dtype, id(source)) for info, source in parts)


def _is_elementwise(step: Step, context: MergeContext) -> bool:
    if step.op == "merge":
        return method_of(step, context).is_elementwise(merge_of(step).parameters) and not device_of(step, context)
    return step.op in ("copy", "average", "max")


def computed_together(group: Sequence[tuple[Step, list[Part]]], context: MergeContext) -> Iterator[Array] | None:
    """Return the flat values of each tensor of a group, in order; None if one of them has a problem."""
    first, (_, parts) = group[0][0], group[0]
    size = sum(prod(step.shape) for step, _ in group)
    every = [(_joined([parts[number][0] for _, parts in group]), source) for number, (_, source) in enumerate(parts)]
    more = tuple(one._replace(shape=(size,)) for one in first.more)
    step = replace(first, shape=(size,), source_shape=(size,), more=more)
    made = []
    try:
        for _, values, lost in computed_blocks(step, every, context):
            if lost.infinite or lost.zero or (takes_numbers(step) and any(count_special(values, step.dtype))):
                return None
            made.append(values.reshape(-1))
    except PlanError:
        return None
    ends = np.cumsum([prod(step.shape) for step, _ in group])
    return iter(np.split(np.concatenate(made), ends[:-1]))


def _joined(infos: Sequence[TensorInfo]) -> TensorInfo:
    """Return one flat tensor that consists of the given ones; neighbours in a file are read together."""
    runs: list[TensorInfo] = []
    for info in infos:
        assert info.storage is not None  # by _kind
        begin = info.storage.offset + info.offset
        last = runs[-1].storage if runs else None
        if last is not None and last.file == info.storage.file and last.offset + last.nbytes == begin:
            last.nbytes += info.nbytes
            runs[-1].shape = (runs[-1].shape[0] + info.numel,)
        else:
            runs.append(TensorInfo(info.dtype, (info.numel,), Storage(info.storage.file, begin, info.nbytes)))
    return join(runs, 0)
