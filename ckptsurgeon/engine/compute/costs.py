"""Computes the costs of applying a plan: bytes to read and write, passes, and memory, up to the limit ``--memory``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from ...checkpoint.checkpoint import Checkpoint
from ...methods.merge._method import Method
from ...planning.plan.check import Costs
from ...planning.plan.plan import Plan
from ...planning.plan.step import Input, Step
from ...tensors.composition import is_decoded, leaves
from ...tensors.dtypes import DTYPES
from ...util.text import human_bytes
from ..context import BUFFERS, MEMORY, MergeContext, memory_error
from ..inputs import PlanInputs
from ..output.shards import parse_size
from .adding_lora import adapting_passes
from .compute import MemoryNeed, block_places, check_need, memory_need, threads_of
from .extracting_lora import factoring_passes
from .pursuit import is_pursuit, pursuit_passes
from .reading import OutputBlock

__all__ = ["costs_of", "memory_bytes", "with_costs"]


def memory_bytes(memory: str | int | None) -> int:
    """Return ``--memory`` in bytes; 0 if it is not given. Raises ConfigError for an invalid size."""
    return parse_size(memory, "--memory") if memory is not None else 0


def with_costs(plan: Plan, memory: int, plugins: tuple[Method, ...] = ()) -> Plan:
    """Return a plan with its estimated cost (passes, bytes read and written) under a limit of ``memory`` bytes.

    A ``memory`` of 0 means the default limit. ``plugins`` are the user's own merge methods. Raises PlanError if the
    limit is too small.
    """
    return replace(plan, costs=costs_of(plan, MergeContext(plan.seed, plugins, memory or MEMORY)))


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
    return Costs(max(passes, default=1), read, written, _memory_of(plan.steps, context))


def _memory_of(steps: Sequence[Step], context: MergeContext) -> int:
    """Return the bytes of memory for applying the steps of a plan; raises PlanError if they exceed ``context.memory``.

    The error is about the step that needs most memory, so that the limit that it advises is enough for all steps.
    """
    distinct = {_alike(step): step for step in reversed(steps)}  # even a large model has few different steps
    largest: tuple[Step, MemoryNeed] | None = None
    memory = BUFFERS if steps else 0
    for step in reversed(distinct.values()):
        places = _places(step, context)
        need = memory_need(step, places, context) if _computes(step) else None
        if need is not None:
            memory = max(memory, need.kept + threads_of(step, places, context) * need.block)
            largest = max(largest or (step, need), (step, need), key=lambda one: one[1].least)
    if largest is not None and largest[1].least > BUFFERS:
        check_need(*largest, context)
    if context.memory < BUFFERS:
        raise memory_error(
            f"copying takes {human_bytes(BUFFERS)} of memory ({BUFFERS} bytes); "
            f"the limit is {human_bytes(context.memory)} ({context.memory} bytes).",
            BUFFERS,
        )
    return memory


def _passes(step: Step, context: MergeContext) -> int:
    """Return the number of times that the inputs of a step are read.

    If a vocabulary has padding rows, the inputs are read once more, to compute the mean rows that fill the padding.
    """
    if step.lora is not None:
        return adapting_passes(step)
    if step.factor is not None:
        return factoring_passes(step)
    means = any(rows.padded for rows in step.vocabularies)
    if step.merge is not None:
        return means + context.method(step.merge.method).passes
    return pursuit_passes(step, context.memory) if is_pursuit(step) else means + 1


def _alike(step: Step) -> tuple[object, ...]:
    """Return a value that is equal for two steps only if both need the same memory."""
    if step.op == "merge":
        return id(step.merge), step.dtype, step.shape, len(step.more), step.coded
    if is_pursuit(step):
        return (step.key,)
    return (step.op in ("lora", "factor") and step.key, step.coded is not None and step.key)


def _computes(step: Step) -> bool:
    """Return whether a step may need more memory than a copy."""
    return step.op in ("merge", "lora", "factor") or step.coded is not None or is_pursuit(step)


def _places(step: Step, context: MergeContext) -> list[OutputBlock]:
    if not _computes(step) or (step.op == "map" and is_pursuit(step)):  # new tokens are computed one batch at a time
        return []
    return block_places(step, (), context)


def _stored_bytes(one: Input, sources: Sequence[Checkpoint]) -> int:
    """Return the stored size in bytes of an input of a step; for a decoded weight, the size of its codes and scales."""
    source = sources[one.source] if one.source < len(sources) else None
    info = source.get(one.key) if source is not None and source.stored is not None else None
    if info is not None and is_decoded(info):
        return sum(leaf.nbytes for leaf in leaves(info))
    return _nbytes(one.dtype, one.shape)


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return (prod(shape) * DTYPES[dtype].bits + 7) // 8
