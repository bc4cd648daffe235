"""Computes the tensors that are not plain copies, block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TypeVar

import numpy as np

from ...errors import PlanError
from ...planning.plan.step import MERGES, Step
from ...tensors.composition import is_decoded, is_rowwise
from ...tensors.decoders._decoder import decode_rounded
from ...tensors.decoders._tables import is_looked_up
from ...tensors.dtypes import DTYPES
from ...tensors.info import Decoded, Encoded, TensorInfo
from ...tensors.ops.casts import CACHED, CastLosses, cast, raw_dtype, widened
from ...tensors.ops.means import average, largest, rounded
from ...tensors.ops.regions import Array, Box, blocks, box_shape
from ...util.text import escape
from ...util.torchrun import cores_of_process
from ..context import MergeContext, factorising_bytes, merging_bytes, merging_places, whole_bytes
from ..resample.adapt import ADAPTERS, adaptation_box, adapted, centred
from ..resample.resample import interpolate, interpolation_box
from .adding_lora import adapting_bytes, adapting_of, adapting_places, kept_bytes
from .bands import OpenFiles, banded
from .computed_codes import coding_of, part_of
from .concatenating import concatenated
from .encoding import Roundings, encoded_block, encoding_boxes
from .extracting_lora import factoring_bytes, factoring_of, factoring_places, factoring_reason
from .merging import merging_of
from .pursuit import PURSUIT_BLOCKS, is_pursuit, keeps_shared_rows, pursuing_of, pursuit_bytes
from .reading import (
    Blockwise,
    OutputBlock,
    Part,
    Seen,
    cast_for,
    keep_freed_memory,
    named,
    naming_scales,
    numbered_blocks,
    read_as,
    read_part,
)
from .rows import copying_rows, mapped_block, overlaid_block
from .strips import STRIP_BYTES, coding_boxes, held_bytes

__all__ = [
    "Computed",
    "MemoryNeed",
    "block_places",
    "blockwise",
    "check_memory",
    "check_need",
    "computed_blocks",
    "memory_need",
    "takes_numbers",
    "threads_of",
]

# The memory for computing a tensor, and how many blocks can be computed at the same time in this memory.

THREADS = min(8, cores_of_process())
"""The number of threads for computing: one for each core of this process, but at most 8.

With more threads, the disk is the limit. If two processes share two cores, four threads take a tenth more processor
time than two.
"""


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes of memory that computing a tensor takes, and the reason for an error message (``why``).

    ``kept`` is the number of bytes that are needed until the whole tensor is computed. ``block`` is the number of
    additional bytes for each block, which are needed only while the block is computed.
    """

    block: int
    why: str
    kept: int = 0

    @property
    def least(self) -> int:
        """The bytes of memory that are needed if only one block at a time is computed."""
        return self.kept + self.block


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


def check_memory(step: Step, places: Sequence[OutputBlock], context: MergeContext) -> None:
    """Raise PlanError if a tensor cannot be computed in the available memory, even one block at a time."""
    need = memory_need(step, places, context)
    if need is not None:
        check_need(step, need, context)


def check_need(step: Step, need: MemoryNeed, context: MergeContext) -> None:
    """Raise PlanError if ``need``, the memory for computing a tensor, is not available."""
    hint = ", or use another merge method for this tensor" if step.op == "merge" else ""
    context.check(step, need.least, need.why, hint)


def threads_of(step: Step, places: Sequence[OutputBlock], context: MergeContext) -> int:
    """Return the number of blocks of a tensor to compute at once, each in a thread, as cores and memory allow."""
    need = memory_need(step, places, context)
    if len(places) < 2 or need is None:
        return (context.threads or THREADS) if len(places) > 1 else 1
    return max(1, min(context.threads or THREADS, (context.memory - need.kept) // max(1, need.block)))


T = TypeVar("T")

BLOCK_BYTES = 2 << 20
"""The approximate bytes of an output block, or of its input if that is larger; each thread has one block in memory."""

MADE_BYTES = 16 << 20
"""Takes the place of ``BLOCK_BYTES`` for derived tensors.

It is larger, because a block of a transposed tensor needs all rows of the source.
"""

ROWS_BYTES = 4 << 20
"""Takes the place of ``MADE_BYTES`` if rows of the output are made of rows of the source.

With small blocks, threads wait less for each other: at the end of a tensor, and to write to the same file.
"""

LOOKED_UP = max(1 << 19, min(1 << 21, (1 << 22) // THREADS))
"""How many elements a block has if codes are decoded by look-up in a table.

An element takes 1 byte of codes and 2 or 4 bytes of values.

With larger blocks, fewer tables are made, Python does less for each element, and threads wait less for each other. With
many threads, blocks are smaller, so that all threads together take no more memory."""

DOUBLES = 4 * 8
"""The bytes of memory for each element of a tensor that is read, weighted and summed in double precision."""

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
    return list(numbered_blocks(blocks(shape, _limit(step, parts[0][0], itemsize)), itemsize))


def blockwise(step: Step, parts: Sequence[Part], context: MergeContext) -> Blockwise:
    """Return a function that computes one block of an output tensor; several threads may call it.

    The arguments of the returned function are the block and ``seen``, which may be None. If a step has several inputs,
    the function calls ``seen`` with the index of each input and the values that it read from this input.
    """
    if step.coded is not None:
        check_memory(step, (), context)
        numbers, order = step.numbers, None
        if step.column_order is not None:
            *parts, (info, source) = parts
            order = read_part(source, info, ((0, info.shape[0]),))
        weight = blockwise(numbers, parts, context)
        coded = coding_of(step, weight, block_places(numbers, parts, context), context, order)
        return copying_rows(step, parts[1], coded) if step.copies_rows else coded
    check_memory(step, block_places(step, parts, context), context)
    parts = [(info, source if info.made is None else banded(info, source)) for info, source in parts]
    compute: Blockwise = partial(_computed, step, parts, context.roundings)
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


def _about(step: Step, work: Callable[[], T]) -> T:
    """Return the result of ``work()``; if it raises PlanError, put the key of the step's tensor before the message."""
    try:
        return work()
    except PlanError as error:
        key = escape(step.key)
        if error.message.startswith((f"{key} ", f"{key}: ")):
            raise
        raise PlanError(f"{key}: {error.message}", hint=error.hint) from error


def _computed(
    step: Step, parts: Sequence[Part], roundings: Roundings, place: OutputBlock, seen: Seen | None
) -> tuple[Array, CastLosses]:
    (info, source), box = parts[0], place.box
    if step.op == "interpolate":
        part = interpolation_box(box, info.shape, step.shape)
        floats = interpolate(read_part(source, info, part), part, box, info.shape, step.shape, dtype=info.dtype)
        values, lost = cast_for(step, floats, "float64" if info.dtype == "float64" else "float32")
    elif step.op in ADAPTERS:
        part = adaptation_box(step.policy, box, info.shape, step.shape)
        wide, _ = cast(read_part(source, info, part), info.dtype, "float64")
        values, lost = cast_for(
            step, adapted(step.policy, wide, part, box, source=info.shape, destination=step.shape), "float64"
        )
    elif step.op == "center":
        dtype = raw_dtype(info.dtype)
        kernel = centred(
            lambda part: read_part(source, info, part), dtype, box, source=info.shape, destination=step.shape
        )
        values, lost = cast_for(step, kernel, info.dtype)
    elif step.overlays:
        values, lost = overlaid_block(step, parts[0], parts[1], box)
    elif step.op == "map":
        values, lost = cast_for(step, mapped_block(step, info, source, box), info.dtype)
    elif step.op in MERGES:
        values, lost = _merged(step, parts, box, seen)
    elif step.op == "concat":
        values, lost = concatenated(step, parts, box)
    elif isinstance(info.made, Encoded):
        values, lost = cast_for(step, encoded_block(info, source, place, roundings), info.dtype)
    else:
        values, lost = _copied(step, info, source, box)
    return values, lost


def _copied(step: Step, info: TensorInfo, source: OpenFiles, box: Box) -> tuple[Array, CastLosses]:
    """Return the part ``box`` of an input in the dtype of the output, and the counts of values that the cast lost."""
    if isinstance(info.made, Decoded) and DTYPES[step.dtype].kind == "float":
        with naming_scales(source, info):
            found = decode_rounded(partial(read_part, source), info, box, step.dtype, source.odd_scales)
        if found is not None:
            values, are_finite = found
            return values, CastLosses(are_finite=are_finite)
    limit = BLOCK_BYTES // info.itemsize
    if not _is_looked_up(step, info) or prod(box_shape(box)) <= limit:
        return cast_for(step, read_part(source, info, box), info.dtype)
    values, lost = np.empty(box_shape(box), raw_dtype(step.dtype)), CastLosses()
    for part in blocks(values.shape, limit):  # in smaller blocks: some values may not be looked up after all
        place = tuple((first + begin, first + end) for (first, _), (begin, end) in zip(box, part, strict=True))
        made, more = cast_for(step, read_part(source, info, place), info.dtype)
        values[tuple(slice(*span) for span in part)] = made.reshape(box_shape(part))
        lost += more
    return values, lost


def _read(parts: Sequence[Part], box: Box, seen: Seen | None) -> Iterator[tuple[Array, str]]:
    """Yield, for each input, its values in the region ``box`` and its dtype; only one input is in memory at a time.

    ``seen``, if given, is called with the index of each input and its values.
    """
    for number, (info, source) in enumerate(parts):
        values = read_as(source, info, box)
        if seen is not None:
            seen(number, values)
        yield values, info.dtype


def _merged(step: Step, parts: Sequence[Part], box: Box, seen: Seen | None) -> tuple[Array, CastLosses]:
    if step.op == "max":
        return cast_for(step, *largest(_read(parts, box, seen)))
    with np.errstate(all="ignore"):
        total, wide = average(_read(parts, box, seen), step.weights)
    lost = CastLosses() if np.isfinite(total).all() else CastLosses(_lost(total, _read(parts, box, None)))
    values, more = named(step, rounded, total, wide)
    return values, lost + more


def _lost(total: Array, parts: Iterator[tuple[Array, str]]) -> int:
    """Return the number of values of a sum that are infinite or NaN although all inputs are finite at this index."""
    odd = ~np.isfinite(total)
    for values, dtype in parts:
        odd &= np.isfinite(np.asarray(widened(values, dtype)))
    return int(np.count_nonzero(odd))


def _is_looked_up(step: Step, info: TensorInfo) -> bool:
    """Return whether most values of an output are looked up in a table of decoded codes.

    Such outputs have larger blocks.
    """
    is_float = DTYPES[step.dtype].kind == "float" and DTYPES[step.dtype].bits <= 32
    return step.op == "copy" and is_float and isinstance(info.made, Decoded) and is_looked_up(info.made)


def _limit(step: Step, info: TensorInfo, itemsize: int) -> int:
    """Return the number of elements of a block of the output.

    The block, or its input if that is larger, then takes about ``BLOCK_BYTES``. ``itemsize`` is the size of an output
    element in bytes.
    """
    if _is_looked_up(step, info):
        return LOOKED_UP
    if info.made is None or isinstance(info.made, Decoded):
        block = BLOCK_BYTES
    else:
        block = ROWS_BYTES if is_rowwise(info) else MADE_BYTES
    limit = block // max(itemsize, info.itemsize)
    if step.op in ADAPTERS:
        limit = BLOCK_BYTES // DOUBLES
    if step.op == "interpolate" or step.op in ADAPTERS:
        limit = limit * prod(step.shape) // max(prod(step.shape), info.numel)
    if step.op in ("average", "concat") or isinstance(info.made, Decoded):
        limit = min(limit, CACHED)
    return max(1, limit)
