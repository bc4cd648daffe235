"""Computes the costs of applying a plan: bytes to read and write, passes, memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.plan.check import Costs
from ...planning.plan.plan import Plan
from ...planning.plan.step import Input, Step
from ...tensors.composition import is_decoded, leaves
from ...tensors.dtypes import DTYPES
from ...util.text import human_bytes
from ..context import MergeContext
from ..inputs import PlanInputs
from .adding_lora import adapting_passes
from .compute import block_places, check_memory, memory_need, threads_of
from .extracting_lora import factoring_passes
from .pursuit import is_pursuit, pursuit_passes

__all__ = ["costs_of"]

BUFFERS = 16 << 20
"""The bytes of memory that copying takes, whatever the sizes of the tensors."""


def costs_of(plan: Plan, context: MergeContext) -> Costs:
    """Return the costs of a plan: the bytes that it reads and writes, the passes over its inputs, and its memory.

    Raises ConfigError for an unknown merge method, PlanError if the plan needs more memory than ``context`` allows.
    """
    passes = [_passes(step, context) for step in plan.steps]
    sources = plan.inputs.sources if isinstance(plan.inputs, PlanInputs) else ()
    read = sum(
        number * sum(_stored_bytes(one, sources) for one in step.inputs)
        for number, step in zip(passes, plan.steps, strict=True)
    )
    written = sum(_nbytes(step.dtype, step.shape) for step in plan.steps)
    if context.memory < BUFFERS:
        raise PlanError(
            f"copying takes {human_bytes(BUFFERS)} of memory ({BUFFERS} bytes); "
            f"the limit is {human_bytes(context.memory)} ({context.memory} bytes).",
            hint=f"Allow more memory: --memory {BUFFERS}B.",
        )
    distinct = {_alike(step): step for step in reversed(plan.steps)}  # even a large model has few different steps
    memory = max((_memory(step, context) for step in reversed(distinct.values())), default=0)
    return Costs(max(passes, default=1), read, written, memory)


def _passes(step: Step, context: MergeContext) -> int:
    """Return the number of times that the inputs of a step are read.

    If a vocabulary has padding rows, the inputs are read once more, to compute the mean rows that fill the padding.
    """
    if step.lora is not None:
        return adapting_passes(step)
    if step.factor is not None:
        return factoring_passes(step)
    if is_pursuit(step):
        return pursuit_passes(step, context.memory)
    means = any(rows.padded for rows in step.vocabularies)
    return means + (context.method(step.merge.method).passes if step.merge is not None else 1)


def _alike(step: Step) -> tuple[object, ...]:
    """Return a value that is equal for two steps only if both need the same memory."""
    if is_pursuit(step):
        return (step.key,)
    if step.op != "merge":
        return (step.op in ("lora", "factor") and step.key, step.coded is not None and step.key)
    return id(step.merge), step.dtype, step.shape, len(step.more), step.coded


def _memory(step: Step, context: MergeContext) -> int:
    if step.op not in ("merge", "lora", "factor") and step.coded is None and not is_pursuit(step):
        return BUFFERS
    places = block_places(step, (), context) if not is_pursuit(step) else ()  # tokens are computed one batch at a time
    check_memory(step, places, context)
    need = memory_need(step, places, context)
    if need is None:
        return BUFFERS
    return max(BUFFERS, need.kept + threads_of(step, places, context) * need.block)


def _stored_bytes(one: Input, sources: Sequence[Checkpoint]) -> int:
    """Return the stored size in bytes of an input of a step; for a decoded weight, the size of its codes and scales."""
    source = sources[one.source] if one.source < len(sources) else None
    info = source.get(one.key) if source is not None and source.stored is not None else None
    if info is not None and is_decoded(info):
        return sum(leaf.nbytes for leaf in leaves(info))
    return _nbytes(one.dtype, one.shape)


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return (prod(shape) * DTYPES[dtype].bits + 7) // 8
