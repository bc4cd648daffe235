"""Writes tensors with values that the destination's initialiser draws: all values, or those that the source lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from typing import NamedTuple

import numpy as np

from ...planning.mismatch.policy_text import parts_of
from ...planning.plan.step import Step
from ...planning.target import TargetSpec
from ...tensors.ops.casts import CastLosses, cast, raw_dtype
from ...tensors.ops.regions import Array
from ...util.freed_memory import keep_freed_memory
from ..checksums import combine
from ..one_output_part import PartRun, has_slot
from .compute_steps import raw
from .one_block import THREADS
from .reading import Part
from .rows import laid_over, overlay

__all__ = ["draw_steps"]


class _Drawn(NamedTuple):
    """A step whose values are drawn; ``written`` has this step and all steps tied to it, which get the same values."""

    run: PartRun
    step: Step
    written: list[Step]


def draw_steps(runs: Iterable[PartRun]) -> None:
    """Write all tensors of ``runs`` that need values from the destination's initialiser.

    Tensors that can be drawn in pieces are written piece by piece, several tensors at once. All other tensors are
    written one at a time.
    """
    drawn: dict[str, _Drawn] = {}
    for run in runs:
        for step in filter(run.draws, run.steps):
            if not step.tied_to:
                drawn[step.key] = _Drawn(run, step, [step])
    for run in runs:
        for step in filter(run.draws, run.steps):
            if step.tied_to and has_slot(run, step):
                drawn[step.tied_to].written.append(step)
    simple = {key: one for key, one in drawn.items() if _is_in_pieces(one)}
    if simple:
        _write_in_pieces(simple.values())
    for key, dtype, data in _initial_values({key: one for key, one in drawn.items() if key not in simple}):
        run, step, written = drawn[key]
        values = _drawn(run, step, dtype, data)
        for each in written:
            run.receipt.checksums[each.key] = run.write(each.key, 0, raw(values))
            run.advance(values.nbytes)
        del values, data


# Tensors in pieces.


def _is_in_pieces(drawn: _Drawn) -> bool:
    """Return whether the values of a step can be drawn in pieces of rows."""
    target, step = _target(drawn.run), drawn.step
    return target.pieces is not None and step.key in target.draws and len(step.shape) > 0 and step.repeats == 1


def _write_in_pieces(drawn: Iterable[_Drawn]) -> None:
    keep_freed_memory()
    ordered = list(drawn)
    largest_first = sorted(
        ordered, key=lambda one: -prod(one.step.shape)
    )  # so that all threads end at about the same time
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="draw")
    try:
        writing = {one.step.key: pool.submit(_written, one) for one in largest_first}
        for run, step, written in ordered:
            sums, lost = writing[step.key].result()
            run.receipt.checksums.update(dict.fromkeys((each.key for each in written), combine(sums)))
            run.receipt.lost[step.key] = lost
            if step.op != "init":
                run.receipt.nbytes_read += run.info(step).nbytes
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure, the other tensors are not drawn


def _written(drawn: _Drawn) -> tuple[list[tuple[int, int]], CastLosses]:
    """Write a tensor piece by piece; return (CRC-32, size in bytes) of each piece, and the counts of lost values.

    A value is lost if a cast makes it infinite or zero.
    """
    run, step, written = drawn
    target, origin = _target(run), _origin(run, step)
    assert target.pieces is not None
    dtype, row = target.tensors[step.key].dtype, prod(step.shape[1:])
    sums, lost, begin, offset = [], CastLosses(), 0, 0
    for data in target.pieces(step.key, run.plan.seed, _had(run, step)):
        run.check()
        initial = np.frombuffer(data, raw_dtype(dtype))
        end = begin + initial.size // max(1, row)
        box = ((begin, end), *((0, size) for size in step.shape[1:]))
        values, more = laid_over(step, origin, initial.reshape(end - begin, *step.shape[1:]), dtype, box)
        (crc,) = {run.write(each.key, offset, raw(values)) for each in written}
        run.advance(len(written) * values.nbytes)
        sums.append((crc, values.nbytes))
        lost, begin, offset = lost + more, end, offset + values.nbytes
    return sums, lost


def _had(run: PartRun, step: Step) -> tuple[int, ...] | None:
    """Return the shape of the source's tensor if only the values outside it are drawn; None if all values are drawn.

    Only ``resize`` leaves out the values that the source has. A transplant draws all, so that new values are the same
    as in a model that is initialised from scratch.
    """
    is_resized = run.plan.verb == "resize" and step.op == "pad" and parts_of(step.policy)[0] == 1
    return step.source_shape if is_resized else None


def _origin(run: PartRun, step: Step) -> Part | None:
    """Return (source tensor, its checkpoint) if some values of the step come from a source; None if all are drawn."""
    if step.op == "init":
        return None
    assert step.source is not None
    return run.info(step), run.inputs.sources[step.source]


def _target(run: PartRun) -> TargetSpec:
    target = run.inputs.target
    assert target is not None
    return target


# Tensors as a whole.


def _initial_values(drawn: Mapping[str, _Drawn]) -> Iterator[tuple[str, str, memoryview]]:
    """Yield (key, dtype, bytes) of the values that the destination's initialiser draws for each key in ``drawn``."""
    for run, *_ in islice(drawn.values(), 1):  # all have the same plan
        target = _target(run)
        for key, data in target.initial(list(drawn), run.plan.seed):
            yield key, target.tensors[key].dtype, data


def _drawn(run: PartRun, step: Step, dtype: str, data: memoryview) -> Array:
    """Return the values of a tensor in the step's dtype: the drawn values, overwritten by the values that a source has.

    ``data`` are the bytes of the drawn values, which have the dtype ``dtype``.
    """
    drawn = np.frombuffer(data, raw_dtype(dtype)).reshape(step.shape)
    if step.repeats > 1:
        drawn = np.repeat(drawn[: len(drawn) // step.repeats], step.repeats, axis=0)
    values, lost = cast(drawn, dtype, step.dtype)
    if step.op != "init":
        info = run.info(step)
        assert step.source is not None
        values = np.ascontiguousarray(values)
        lost += overlay(step, info, run.inputs.sources[step.source], values)
        run.receipt.nbytes_read += info.nbytes
    run.receipt.lost[step.key] = lost
    return values
