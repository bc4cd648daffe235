"""Rereads an output and holds it against its recipe, its plan and its sources, bit for bit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .checkpoint import Checkpoint
from .engine import cast_for, check_step, computed_blocks, crc32, overlay, read_part, whole
from .errors import CheckpointError, FormatError
from .ops import blocks, cast, count_special, overlap_shape, raw_dtype
from .plan import Failure, Plan, PlanSource, Step, Verification
from .recipe import Made, Recipe
from .sources import File
from .tensors import DTYPES, TensorInfo, contiguous_stride
from .text import escape, shape_text

__all__ = ["Expected", "expected_of_plan", "expected_of_recipe", "verify_output"]

BLOCK = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What an output should be: each tensor's making, the sources by index, and the seal if there is one."""

    tensors: Mapping[str, Made]
    sources: Mapping[int, Checkpoint]
    absent: Mapping[int, str]
    seal: str = ""
    seed: int | None = None
    has_checksums: bool = True
    keeper: int | None = None
    """The index of the source that is the destination itself."""


def expected_of_recipe(recipe: Recipe, sources: Mapping[int, Checkpoint], absent: Mapping[int, str]) -> Expected:
    """Return what a recipe says its output is."""
    return Expected(recipe.tensors, sources, absent, seal=recipe.seal, seed=recipe.seed, keeper=_keeper(recipe.sources))


def _keeper(sources: Sequence[PlanSource]) -> int | None:
    return next((i for i, source in enumerate(sources) if source.role == "destination"), None)


def expected_of_plan(plan: Plan, sources: Mapping[int, Checkpoint], absent: Mapping[int, str]) -> Expected:
    """Return what a plan says its output should be; there are no checksums in a plan."""
    made = {
        step.key: Made(step.op, step.kind, step.source, step.source_key, step.policy, step.tied_to)
        for step in plan.steps
    }
    return Expected(made, sources, absent, has_checksums=False, keeper=_keeper(plan.sources))


@dataclass
class _Check:
    output: Checkpoint
    expected: Expected
    progress: Callable[[int, int], None]
    total: int
    done: int = 0
    failed: list[Failure] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)
    compared: int = 0
    drawn: int = 0
    nan: int = 0
    inf: int = 0

    def fail(self, key: str, why: str) -> None:
        self.failed.append(Failure(key, why))

    def advance(self, nbytes: int) -> None:
        self.done += nbytes
        self.progress(self.done, self.total)


def verify_output(
    output: Checkpoint,
    expected: Expected,
    *,
    plan: Plan | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check every byte of an output: the seal, every checksum, every copied and computed tensor, every tie.

    With a ``plan``, what the output says of itself must also be what was planned. Tensors whose source is gone are
    NOT COMPARED beyond their checksum; drawn ones are never drawn again.
    """
    began = time.perf_counter()
    total = 2 * sum(info.nbytes for info in output.values())
    check = _Check(output, expected, progress or (lambda done, total: None), total)
    if expected.seal and output.header.frame() != expected.seal:
        check.fail("", "the header or metadata is not as it was written")
    _check_keys(check)
    if plan is not None:
        _check_plan(check, plan)
    keys = [key for key in expected.tensors if key in output]
    for key in keys:
        try:
            _check_values(check, key)
        except CheckpointError as error:
            check.fail(key, str(error))
    _check_ties(check)
    return Verification(
        output=output.path,
        checked=len(keys),
        compared=check.compared,
        drawn=check.drawn,
        failed=tuple(check.failed),
        not_compared=check.not_compared,
        nan=check.nan,
        inf=check.inf,
        nbytes=_nbytes(output),
        elapsed_s=time.perf_counter() - began,
        recipe=expected.has_checksums,
    )


def _nbytes(output: Checkpoint) -> int:
    """Return the bytes of all files of an output; in a folder the recipe is one of them."""
    beside = len(output.recipe.encode()) if output.recipe and os.path.isdir(output.path) else 0
    return beside + sum(file.size for file in output.files)


def _check_keys(check: _Check) -> None:
    for key in check.expected.tensors:
        if key not in check.output:
            check.fail(key, "is not in the output")
    for key in check.output:
        if key not in check.expected.tensors:
            check.fail(key, "is in the output and in nothing that made it")


def _check_plan(check: _Check, plan: Plan) -> None:
    """Hold the output's dtypes, shapes and origins against a plan."""
    if check.expected.seed not in (None, plan.seed):
        check.fail("", f"was drawn with seed {check.expected.seed}, planned with {plan.seed}")
    planned = {step.key: step for step in plan.steps}
    for key in check.expected.tensors.keys() - planned.keys():
        check.fail(key, "is not in the plan")
    for key, step in planned.items():
        info, made = check.output.get(key), check.expected.tensors.get(key)
        if info is not None and (info.dtype, info.shape) != (step.dtype, step.shape):
            check.fail(
                key,
                f"is {info.dtype} {shape_text(info.shape)}, planned as {step.dtype} {shape_text(step.shape)}",
            )
        if made is None:
            check.fail(key, "is planned and was not made")
        elif (made.op, made.source, made.source_key) != (step.op, step.source, step.source_key):
            check.fail(key, f"was made by {made.op} from {made.source_key or 'nothing'}, planned otherwise")


def _check_values(check: _Check, key: str) -> None:
    """Hold one tensor against its checksum, then against what it was made from."""
    info, made = check.output[key], check.expected.tensors[key]
    if info.opaque or info.storage is None:
        raise FormatError(f"its values cannot be read: {info.opaque}.")
    file = check.output.file(info)
    crc = _read_through(check, file, info)
    if check.expected.has_checksums and crc != made.crc32:
        check.fail(key, f"has CRC-32 {crc:08x} where {made.crc32:08x} was recorded")
        return
    whole_record = info.is_plain and info.nbytes == info.storage.nbytes
    if info.storage.crc32 is not None and whole_record and crc != info.storage.crc32:
        check.fail(key, "does not have the checksum of its record")
        return
    _compare(check, key, info, made)
    check.advance(info.nbytes)


def _read_through(check: _Check, file: File, info: TensorInfo) -> int:
    """Return the CRC-32 of a tensor's bytes, counting NaN and Inf on the way."""
    read, floating = _reader(file, info), DTYPES[info.dtype].kind in ("float", "complex")
    crc = 0
    for done in range(0, info.nbytes, BLOCK):
        data = read(done, min(BLOCK, info.nbytes - done))
        crc = crc32(data, crc)
        if floating:
            nan, inf = count_special(np.frombuffer(data, raw_dtype(info.dtype)), info.dtype)
            check.nan, check.inf = check.nan + nan, check.inf + inf
        check.advance(len(data))
    return crc


def _reader(file: File, info: TensorInfo) -> Callable[[int, int], bytes]:
    """Return what reads (offset, size) of a tensor's values as if they were contiguous."""
    assert info.storage is not None
    if info.is_plain:
        begin = info.storage.offset + info.offset
        return lambda offset, size: file.read(begin + offset, size)
    data = read_part(file, info, tuple((0, size) for size in info.shape)).tobytes()
    return lambda offset, size: data[offset : offset + size]


def _compare(check: _Check, key: str, info: TensorInfo, made: Made) -> None:
    if made.source is None:
        check.drawn += 1
        return
    source = check.expected.sources.get(made.source)
    if source is None:
        check.not_compared[key] = check.expected.absent.get(made.source, "its source is gone")
        return
    origin = source.get(made.source_key)
    if origin is None:
        check.fail(key, f"came from {escape(made.source_key)}, which {escape(source.path)} does not have")
        return
    keeper = check.expected.keeper
    if made.op in ("pad", "overlap") and keeper is not None and keeper not in check.expected.sources:
        check.not_compared[key] = check.expected.absent.get(keeper, "the destination is gone")
        return
    step = Step(key, made.op, info.dtype, info.shape, made.source, made.source_key, origin.dtype, origin.shape)
    check_step(step)
    where = _first_difference(check, step, info, source, origin)
    if where is not None:
        check.fail(key, f"differs from {escape(made.source_key)} of {escape(source.path)} at byte {where}")
    check.compared += where is None


def _first_difference(
    check: _Check, step: Step, info: TensorInfo, source: Checkpoint, origin: TensorInfo
) -> int | None:
    """Return the first byte at which a tensor is not what its source makes of it, None when there is none."""
    file, theirs = check.output.file(info), source.file(origin)
    if step.op in ("copy", "keep") and info.dtype == origin.dtype and origin.is_plain:
        return _first_different_byte(file, info, theirs, origin)
    read = _reader(file, info)
    if step.op in ("pad", "overlap"):
        if check.expected.keeper is not None:
            return _overlaid_difference(check, step, info, origin)
        return _overlay_difference(step, file, info, theirs, origin)
    for offset, values, _ in computed_blocks(step, origin, theirs):
        raw = values.reshape(-1).view("u1").data
        here = read(offset, len(raw))
        if raw != here:
            return offset + _mismatch(raw, here)
    return None


def _first_different_byte(file: File, info: TensorInfo, theirs: File, origin: TensorInfo) -> int | None:
    if info.nbytes != origin.nbytes:
        return min(info.nbytes, origin.nbytes)
    here, there = _reader(file, info), _reader(theirs, origin)
    for done in range(0, info.nbytes, BLOCK):
        size = min(BLOCK, info.nbytes - done)
        a, b = here(done, size), there(done, size)
        if a != b:
            return done + _mismatch(a, b)
    return None


def _mismatch(a: Any, b: Any) -> int:
    first, second = np.frombuffer(a, "u1"), np.frombuffer(b, "u1")
    return int(np.argmax(first != second))


def _overlay_difference(step: Step, file: File, info: TensorInfo, theirs: File, origin: TensorInfo) -> int | None:
    """Compare the leading part that a source was laid over; the rest was drawn."""
    stride = contiguous_stride(info.shape)
    for box in blocks(overlap_shape(origin.shape, info.shape), BLOCK // info.itemsize):
        here = read_part(file, info, box)
        there, _ = cast_for(step, read_part(theirs, origin, box), origin.dtype)
        if not np.array_equal(here.view("u1"), there.view("u1")):
            return sum(begin * step for (begin, _), step in zip(box, stride, strict=True)) * info.itemsize
    return None


def _overlaid_difference(check: _Check, step: Step, info: TensorInfo, origin: TensorInfo) -> int | None:
    """Compare a source laid over the destination's own values."""
    assert check.expected.keeper is not None
    assert step.source is not None
    keeper, source = check.expected.sources[check.expected.keeper], check.expected.sources[step.source]
    values, _ = cast(whole(keeper, step.key), keeper[step.key].dtype, step.dtype)
    values = np.array(values)
    overlay(step, origin, source.file(origin), values)
    here = read_part(check.output.file(info), info, tuple((0, size) for size in info.shape))
    if here.tobytes() == values.tobytes():
        return None
    return _mismatch(here.tobytes(), values.tobytes())


def _check_ties(check: _Check) -> None:
    """Tied keys must hold the same bytes."""
    for key, made in check.expected.tensors.items():
        if not made.tied_to or key not in check.output or made.tied_to not in check.output:
            continue
        info, owner = check.output[key], check.output[made.tied_to]
        if info.place == owner.place:
            continue
        where = _first_different_byte(check.output.file(info), info, check.output.file(owner), owner)
        if where is not None:
            check.fail(key, f"is tied to {escape(made.tied_to)} and differs from it at byte {where}")
