"""Computes the tensors that are not plain copies, block by block, in bounded memory, and the costs of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import TypeVar

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...methods.merge._method import Method
from ...planning.plan.check import Costs
from ...planning.plan.plan import Plan
from ...planning.plan.step import MERGES, Input, Step
from ...tensors.composition import is_decoded, leaves
from ...tensors.dtypes import DTYPES
from ...tensors.info import Encoded, TensorInfo
from ...tensors.ops.casts import CastLosses, raw_dtype
from ...tensors.ops.regions import Array, blocks
from ...util.freed_memory import keep_freed_memory
from ...util.text import escape, human_bytes
from ..apply_settings import (
    BUFFERS,
    MEMORY,
    MemoryNeed,
    MergeContext,
    factorising_bytes,
    memory_error,
    merging_bytes,
    merging_places,
    whole_bytes,
)
from ..inputs import PlanInputs
from ..output.shards import parse_size
from ..resample.resize_in_parts import ADAPTERS
from .adding_lora import adapting_bytes, adapting_of, adapting_passes, adapting_places, kept_bytes
from .column_bands import banded
from .computed_codes import coding_of, part_of
from .encoding import encoding_boxes
from .extracting_lora import factoring_bytes, factoring_of, factoring_passes, factoring_places, factoring_reason
from .matching_pursuit import PURSUIT_BLOCKS, is_pursuit, keeps_shared_rows, pursuing_of, pursuit_bytes, pursuit_passes
from .merging import merging_of
from .one_block import THREADS, block_limit, computed_block
from .reading import Blockwise, OutputBlock, Part, Seen, numbered_blocks, read_part
from .rows import copying_rows
from .transposed_codes import STRIP_BYTES, coding_boxes, held_bytes

__all__ = [
    "Computed",
    "block_places",
    "blockwise",
    "computed_blocks",
    "computes",
    "costs_of",
    "memory_bytes",
    "memory_need",
    "takes_numbers",
    "threads_of",
    "with_costs",
]

# The memory for computing a tensor, and how many blocks can be computed at the same time in this memory.


def memory_need(step: Step, places: Sequence[OutputBlock], context: MergeContext) -> MemoryNeed | None:
    """Return the memory for computing a tensor in the blocks ``places``; None if it takes no more than a copy."""
    if step.coded is not None:
        numbers = step.numbers
        is_copied = numbers.op not in ("merge", "lora", "factor")
        need = None if is_copied else memory_need(numbers, block_places(numbers, (), context), context)
        return _with_matrix(need, part_of(step))
    if step.op == "merge":
        factors, whole = factorising_bytes(step, context), whole_bytes(step, context)
        needs = "whole matrices and their factors" if factors else "whole tensors" if whole else "a slice of all models"
        held = factors or whole
        return MemoryNeed(merging_bytes(step, places), f"the method needs {needs} at once", held)
    if step.op == "lora":
        why = "its adapters' factors and a block of rows are in memory at once"
        return MemoryNeed(adapting_bytes(step, places), why, kept_bytes(step))
    if is_pursuit(step):
        vectors, shared = pursuit_bytes(step)
        kept = vectors + (shared if keeps_shared_rows(step, context.memory) else 0)
        return MemoryNeed(
            PURSUIT_BLOCKS, "the rows of new tokens are sums of many other rows, which are in memory at once", kept
        )
    if step.op == "factor":
        return MemoryNeed(factoring_bytes(step), factoring_reason(step))
    return None


def _with_matrix(need: MemoryNeed | None, part: TensorInfo) -> MemoryNeed | None:
    """Return the memory for computing ``part``, a part of a quantised tensor such as its codes.

    ``need`` is the memory for computing the weight. If ``part`` is computed in strips of columns, the memory for a
    whole matrix is added, because the matrix stays in memory until all its strips are computed. ``need`` and the result
    are None if computing takes no more memory than a copy.
    """
    held = held_bytes(part)
    if not held:
        return need
    need = need or MemoryNeed(0, "a whole matrix of its codes is in memory at once")
    several = prod(part.shape[:-2]) > 1  # then each thread has a matrix in memory
    return replace(need, block=need.block + STRIP_BYTES + several * held, kept=need.kept + (not several) * held)


def threads_of(step: Step, places: Sequence[OutputBlock], context: MergeContext) -> int:
    """Return the number of blocks of a tensor to compute at once, each in a thread, as cores and memory allow."""
    need = memory_need(step, places, context)
    if len(places) < 2 or need is None:
        return (context.threads or THREADS) if len(places) > 1 else 1
    return max(1, min(context.threads or THREADS, (context.memory - need.kept) // max(1, need.block)))


T = TypeVar("T")

Computed = tuple[int, Array, CastLosses]
"""A block: its offset in the tensor in bytes, its values (in the type of ``raw_dtype``), the counts of lost values."""


def computed_blocks(step: Step, parts: Sequence[Part], context: MergeContext | None = None) -> Iterator[Computed]:
    """Yield each block of an output tensor, in order: offset in bytes, values, and counts of values that a cast lost.

    ``parts`` are the step's inputs, each with its checkpoint. If a source provides only some of the values, and a
    destination checkpoint the others, the last element of ``parts`` is the tensor of the destination.
    """
    keep_freed_memory()
    context = context or MergeContext()
    compute = blockwise(step, parts, context)
    for place in block_places(step, parts, context):
        values, lost = compute(place, None)
        yield place.offset, values, lost


def takes_numbers(step: Step, inputs: Iterable[TensorInfo]) -> bool:
    """Return whether a step computes with the values of ``inputs``, as a cast does, instead of only moving them."""
    if step.op in (*MERGES, "lora", "concat", "interpolate", *ADAPTERS) or step.dtype != step.source_dtype:
        return True
    return any(info.made is not None and is_decoded(info) for info in inputs)


def block_places(step: Step, parts: Sequence[Part], context: MergeContext) -> list[OutputBlock]:
    """Return the blocks in which an output tensor is computed."""
    if step.coded is not None:
        return list(numbered_blocks(coding_boxes(part_of(step)), raw_dtype(step.dtype).itemsize))
    if step.op == "merge":
        return merging_places(step, context)
    if step.op == "lora":
        return adapting_places(step)
    if step.op == "factor":
        return factoring_places(step)
    itemsize = raw_dtype(step.dtype).itemsize
    if isinstance(parts[0][0].made, Encoded) and step.op == "copy":
        return list(numbered_blocks(encoding_boxes(parts[0][0]), itemsize))
    shape = step.shape if step.op != "copy" else parts[0][0].shape  # (1,) and () have the same bytes
    return list(numbered_blocks(blocks(shape, block_limit(step, parts[0][0], itemsize)), itemsize))


def blockwise(step: Step, parts: Sequence[Part], context: MergeContext) -> Blockwise:
    """Return a function that computes one block of an output tensor; several threads may call it.

    The arguments of the returned function are the block and ``seen``, which may be None. If a step has several inputs,
    the function calls ``seen`` with the index of each input and the values that it read from this input.
    """
    if step.coded is not None:
        _check_memory(step, (), context)
        numbers, order = step.numbers, None
        if step.column_order is not None:
            *parts, (info, source) = parts
            order = read_part(source, info, ((0, info.shape[0]),))
        weight = blockwise(numbers, parts, context)
        coded = coding_of(step, weight, block_places(numbers, parts, context), context, order)
        return copying_rows(step, parts[1], coded) if step.copies_rows else coded
    _check_memory(step, block_places(step, parts, context), context)
    parts = [(info, source if info.made is None else banded(info, source)) for info, source in parts]
    compute: Blockwise = partial(computed_block, step, parts, context.roundings)
    if step.op == "merge":
        compute = _about(step, partial(merging_of, step, parts, context))
    elif step.op == "lora":
        compute = _about(step, partial(adapting_of, step, parts, context.adapters))
    elif step.op == "factor":
        compute = factoring_of(step, parts, context.factors)
    elif is_pursuit(step):
        compute = pursuing_of(step, parts, context.memory)

    def block(place: OutputBlock, seen: Seen | None = None) -> tuple[Array, CastLosses]:
        values, lost = _about(step, partial(compute, place, seen))
        return np.ascontiguousarray(values), lost

    return block


def _check_memory(step: Step, places: Sequence[OutputBlock], context: MergeContext) -> None:
    """Raise PlanError if a tensor cannot be computed in the available memory, even one block at a time."""
    need = memory_need(step, places, context)
    if need is not None:
        context.check(step, need)


def _about(step: Step, work: Callable[[], T]) -> T:
    """Return the result of ``work()``; if it raises PlanError, put the key of the step's tensor before the message."""
    try:
        return work()
    except PlanError as error:
        key = escape(step.key)
        if error.message.startswith((f"{key} ", f"{key}: ")):
            raise
        raise PlanError(f"{key}: {error.message}", hint=error.hint) from error


# The costs of a plan: bytes to read and write, passes, memory.


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
        places = _places_of(step, context)
        need = memory_need(step, places, context)
        if need is not None:
            memory = max(memory, need.kept + threads_of(step, places, context) * need.block)
            largest = max(largest or (step, need), (step, need), key=lambda one: one[1].least)
    if largest is not None and largest[1].least > BUFFERS:
        context.check(*largest)
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


def computes(plan: Plan) -> bool:
    """Return whether a limit of memory has an effect: a step of the plan may need more memory than a copy."""
    return any(map(_computes, plan.steps))


def _places_of(step: Step, context: MergeContext) -> list[OutputBlock]:
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
