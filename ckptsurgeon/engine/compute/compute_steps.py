"""Writes the tensors that are not plain copies, but computed from checkpoints: cast, resized or merged.

Many small tensors are computed together, as one tensor, if this does not change their values.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...planning.transplant.equal_tensors import unequal_error
from ...tensors.composition import decoded_names, join
from ...tensors.dtypes import SATURATED
from ...tensors.info import Storage, TensorInfo
from ...tensors.ops.casts import CastLosses, count_special, raw_dtype
from ...tensors.ops.regions import Array, box_shape
from ...util.freed_memory import keep_freed_memory
from ..apply_settings import MEMORY, MemoryNeed, MergeContext, device_of, merge_of, method_of
from ..checksums import bad_checksum, combine, crc32
from ..one_output_part import PartRun, checked_on_the_way
from .compute import block_places, blockwise, computed_blocks, memory_need, takes_numbers, threads_of
from .encoding import Roundings
from .merging import are_variances, count_negative, had_none
from .reading import OutputBlock, Part, relevant

__all__ = ["check_equal", "compute_steps", "computed_together", "grouped", "raw"]

# Many small tensors are computed together, as one tensor, if their steps are element-wise.
#
# A model with experts may have a hundred thousand small tensors, and each would take some forty calls of NumPy. If
# there is a problem (a value that becomes infinite, an integer that does not fit), the tensors are computed again one
# at a time, so that the message can contain the key of the tensor.

FEW = 1 << 14
"""A tensor with more elements than this is computed alone, not together with other tensors."""

TOGETHER = 1 << 16
"""The approximate maximum of the total number of elements of tensors that are computed together."""


def grouped(run: PartRun, context: MergeContext) -> Iterator[list[tuple[Step, list[Part]]]]:
    """Yield groups of steps that can be computed together; each step comes with its inputs.

    Steps that need values from the destination's initialiser are left out.
    """
    group: list[tuple[Step, list[Part]]] = []
    last, size = None, 0
    for step in run.others:
        if step.source is None or run.draws(step):
            continue
        parts: list[Part] = [*run.sources_of(step)]
        kind = _kind(step, parts, context)
        if group and (kind is None or kind != last or size > TOGETHER):
            yield group
            group, size = [], 0
        group.append((step, parts))
        last, size = kind, size + prod(step.shape)
    if group:
        yield group


def _kind(step: Step, parts: Sequence[Part], context: MergeContext) -> Hashable:
    """Return a key that is equal for tensors that may be computed together; None if a tensor must be computed alone."""
    size = prod(step.shape)
    if not 0 < size <= FEW or step.policy or step.coded or not _is_elementwise(step, context):
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
    """Return the flat values of each tensor of a group, in order; None if there is a problem with any of them.

    A problem is an error, or a value that becomes zero, infinite or NaN. The tensors must then be computed one at a
    time, so that a message can contain the right key.
    """
    first, (_, parts) = group[0][0], group[0]
    size = sum(prod(step.shape) for step, _ in group)
    every = [(_joined([parts[number][0] for _, parts in group]), source) for number, (_, source) in enumerate(parts)]
    more = tuple(one._replace(shape=(size,)) for one in first.more)
    step = replace(first, shape=(size,), source_shape=(size,), more=more)
    made, counted = [], takes_numbers(step, [info for info, _ in every])
    try:
        for _, values, lost in computed_blocks(step, every, context):
            if lost.infinite or lost.zero or (counted and any(count_special(values, step.dtype))):
                return None
            made.append(values.reshape(-1))
    except PlanError:
        return None
    ends = np.cumsum([prod(step.shape) for step, _ in group])
    return iter(np.split(np.concatenate(made), ends[:-1]))


def _joined(infos: Sequence[TensorInfo]) -> TensorInfo:
    """Return the header of a flat tensor with the elements of all ``infos``, in order.

    Tensors that are adjacent in a file are joined to one range, which is read at once.
    """
    runs: list[TensorInfo] = []
    for info in infos:
        assert info.storage is not None  # ensured by _kind
        begin = info.storage.offset + info.offset
        last = runs[-1].storage if runs else None
        if last is not None and last.file == info.storage.file and last.offset + last.nbytes == begin:
            last.nbytes += info.nbytes
            runs[-1].shape = (runs[-1].shape[0] + info.numel,)
        else:
            runs.append(TensorInfo(info.dtype, (info.numel,), Storage(info.storage.file, begin, info.nbytes)))
    return join(runs, 0)


def check_equal(plan: Plan, sources: Sequence[Checkpoint]) -> None:
    """Raise PlanError if two tensors of a source that are tied in the destination have different values."""
    for pair in plan.equal:
        source = sources[pair.source]
        step = Step(pair.first, "copy", source[pair.first].dtype, source[pair.first].shape)
        first = computed_blocks(step, [(source[pair.first], source)])
        second = computed_blocks(step, [(source[pair.second], source)])
        for (_, a, _), (_, b, _) in zip(first, second, strict=True):
            if not np.array_equal(a.view("u1"), b.view("u1")):
                raise unequal_error(*pair.names, source.path, plan.verb)


def compute_steps(run: PartRun) -> None:
    """Write every tensor that is computed from checkpoints: cast, resized, merged, or copied from a strided view."""
    keep_freed_memory()
    pools: dict[int, ThreadPoolExecutor] = {}
    roundings = Roundings(is_measured=True)
    inputs = run.inputs
    shared = MergeContext(run.plan.seed, inputs.plugins, inputs.memory or MEMORY, inputs.threads, roundings=roundings)
    try:
        computing: _Computing | None = None
        for group in grouped(run, shared):
            made = computed_together(group, shared) if len(group) > 1 else None
            if made is None:
                for step, parts in group:
                    computing = _follow(run, step, parts, shared, pools, computing)
                continue
            _finished(run, computing)
            computing = None
            run.check()
            for (step, parts), values in zip(group, made, strict=True):
                _note_negative(run, step, parts, count_negative(values, step.dtype) if are_variances(step) else 0)
                run.receipt.checksums[step.key] = run.write(step.key, 0, raw(values))
                run.receipt.nbytes_read += sum(info.nbytes for info, _ in parts)
                run.advance(values.nbytes)
        _finished(run, computing)
        run.receipt.fits = tuple(shared.factors.fits.values())
        if roundings.losses:
            run.receipt.rounded = roundings.rounded()
        if shared.growths.blocks:
            run.receipt.grown = shared.growths.grown()
        run.receipt.adapters = {run.inputs.sources[one].path: found for one, found in shared.adapters.keys.items()}
        run.receipt.odd_scales = _odd_scales(run)
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)  # after a failure, the other blocks of the tensor are not computed


def _odd_scales(run: PartRun) -> dict[str, dict[str, list[str]]]:
    """Return {path of a source: {kind of suspicious scale: names of quantised tensors}} for the inputs of a run."""
    if not any(source.has_odd_scales for source in run.inputs.sources):
        return {}
    names: dict[str, tuple[Checkpoint, set[str]]] = {}
    for step in run.others:
        for info, source in run.sources_of(step) if step.source is not None else ():
            names.setdefault(source.path, (source, set()))[1].update(decoded_names(info))
    return {path: source.odd_scales.of(some) for path, (source, some) in names.items() if source.has_odd_scales}


_Done = tuple[int, int, CastLosses, int]
"""A block that was written: its CRC-32, its bytes, the counts of lost values, how many values are NaN or infinite."""


_Sums = dict[int, tuple[int, int]]
"""{index of a block: CRC-32 and number of the bytes that were read of an input}; threads add blocks in any order."""


@dataclass(frozen=True)
class _Computing:
    """A tensor whose blocks are computed and written in a pool of ``threads`` threads (1: in this thread).

    ``blocks`` yields each block, in order, as soon as it is written. ``need`` is the memory for computing the tensor.
    """

    step: Step
    parts: Sequence[Part]
    blocks: Iterator[_Done]
    sums: Sequence[_Sums | None]
    negative: Sequence[int]
    threads: int
    need: MemoryNeed


def _follow(
    run: PartRun,
    step: Step,
    parts: Sequence[Part],
    context: MergeContext,
    pools: dict[int, ThreadPoolExecutor],
    before: _Computing | None,
) -> _Computing:
    """Begin to compute a tensor, and wait until the tensor ``before`` is written.

    If there is enough memory for both, the new tensor is begun before the wait, so that no thread is idle between two
    tensors. If both tensors fail, the error of ``before`` is raised. ``pools`` are the thread pools that were started
    so far, by their number of threads.
    """
    places = block_places(step, parts, context)
    threads, need = threads_of(step, places, context), memory_need(step, places, context) or MemoryNeed(0, "")
    if before is not None and not _fit_together(before, step, threads, need, context):
        _finished(run, before)
        before = None
    try:
        return _begun(run, step, parts, context, pools, places, threads, need)
    finally:
        _finished(run, before)


def _fit_together(before: _Computing, step: Step, threads: int, need: MemoryNeed, context: MergeContext) -> bool:
    """Return whether two tensors can be computed at once.

    Their blocks must depend on nothing but their inputs, and there must be enough memory for both.
    """
    is_simple = all(one.coded is None and one.op not in ("merge", "factor", "map") for one in (before.step, step))
    kept, block = before.need.kept + need.kept, max(before.need.block, need.block)
    return is_simple and threads == before.threads > 1 and kept + threads * block <= context.memory


def _begun(
    run: PartRun,
    step: Step,
    parts: Sequence[Part],
    context: MergeContext,
    pools: dict[int, ThreadPoolExecutor],
    places: Sequence[OutputBlock],
    number: int,
    need: MemoryNeed,
) -> _Computing:
    """Begin to compute and write one tensor block by block, in ``number`` threads.

    Raises FormatError, which names the quantised tensor, for an invalid order of columns (``g_idx``).
    """
    if number > 1:  # for a single block, a thread would cost more than it saves
        if number not in pools:
            pools[number] = ThreadPoolExecutor(number, thread_name_prefix="compute")
        context = replace(context, spread=pools[number].map)
    sums: list[_Sums | None] = [{} if checked_on_the_way(step, info) else None for info, _ in parts]
    compute = blockwise(step, parts, context)
    counted, variances = takes_numbers(step, [info for info, _ in parts]), are_variances(step)
    negative: list[int] = []

    def block(place: OutputBlock) -> _Done:
        def seen(number: int, read: Array) -> None:
            kept = sums[number]
            if kept is not None:
                data = raw(read)
                kept[place.index] = crc32(data), len(data)

        run.check()
        values, lost = compute(place, seen)
        assert values.nbytes == prod(box_shape(place.box)) * raw_dtype(step.dtype).itemsize, step.key
        crc = run.write(step.key, place.offset, raw(values))
        run.advance(values.nbytes)
        if variances:
            negative.append(count_negative(values, step.dtype))
        unsound = sum(count_special(values, step.dtype)) if counted and not lost.are_finite else 0
        return crc, values.nbytes, lost, unsound

    return _Computing(step, parts, iter(context.spread(block, places)), sums, negative, number, need)


def _finished(run: PartRun, computing: _Computing | None) -> None:
    """Wait until the tensor that is being computed, if any, is written; put checksum and counts into the receipt."""
    if computing is None:
        return
    step, parts = computing.step, computing.parts
    done = list(computing.blocks)
    _check_sums(parts, computing.sums)
    lost = sum((each for _, _, each, _ in done), CastLosses())
    run.receipt.lost[step.key] = relevant(lost, [info for info, _ in parts], step)
    _note_negative(run, step, parts, sum(computing.negative))
    unsound = sum(number for _, _, _, number in done) - (0 if step.dtype in SATURATED else lost.infinite)
    if unsound > 0:
        run.receipt.unsound[step.key] = unsound
    run.receipt.nbytes_read += sum(info.nbytes for info, _ in parts)
    run.receipt.checksums[step.key] = _checksum([(crc, nbytes) for crc, nbytes, _, _ in done])


def _note_negative(run: PartRun, step: Step, parts: Sequence[Part], number: int) -> None:
    if number and had_none(parts):
        run.receipt.negative[step.key] = number


def _checksum(parts: Sequence[tuple[int, int]]) -> int:
    """Return the CRC-32 of consecutive parts, given as (CRC-32, number of bytes); most tensors have one part."""
    return parts[0][0] if len(parts) == 1 else combine(parts)


def _check_sums(parts: Sequence[Part], sums: Sequence[_Sums | None]) -> None:
    """Raise FormatError if the bytes that were read from an input do not match the checksum in its file.

    ``sums`` are the computed checksums of each input, or None for an input that is not checked here.
    """
    for (info, source), found in zip(parts, sums, strict=True):
        if found is not None:
            assert info.storage is not None  # ensured by checked_on_the_way
            if _checksum([found[index] for index in sorted(found)]) != info.storage.crc32:
                raise bad_checksum(source.file(info), info.storage.name)


def raw(values: Array) -> memoryview:
    """Return the bytes of an array, row-major."""
    return np.ascontiguousarray(values).reshape(-1).view("u1").data
