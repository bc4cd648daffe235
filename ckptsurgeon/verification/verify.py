"""Rereads an output and holds it against its recipe, its plan and its sources, bit for bit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..engine import check_step, crc32
from ..errors import CheckpointError, FormatError
from ..ops import count_special, raw_dtype
from ..plan import Failure, Input, Plan, PlanSource, PlanTarget, Rows, Step, Verification, with_vocabularies
from ..recipe import Made, Recipe, made_of
from ..tensors import DTYPES, TensorInfo
from ..text import escape, shape_text
from .companions import companion_faults
from .differences import BLOCK, first_difference, first_different_byte, reader
from .expected import Expected

__all__ = ["verify_output"]


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
    near: int = 0
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
    for fault in companion_faults(output.path, expected.said.target.companions) if expected.said is not None else ():
        check.fail("", fault)
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
        near=check.near,
        failed=tuple(check.failed),
        not_compared=check.not_compared,
        nan=check.nan,
        inf=check.inf,
        nbytes=_nbytes(output, expected.said),
        elapsed_s=time.perf_counter() - began,
        recipe=expected.has_checksums,
    )


def _nbytes(output: Checkpoint, said: Recipe | None) -> int:
    """Return the bytes of all files of an output; in a folder the recipe and what lies beside are of them."""
    beside = len(output.recipe.encode()) if output.recipe and os.path.isdir(output.path) else 0
    beside += sum(one.size for one in said.target.companions) if said is not None else 0
    return beside + sum(file.size for file in output.files)


def _check_keys(check: _Check) -> None:
    for key, made in check.expected.tensors.items():
        if (key in check.output) == made.implied:
            check.fail(key, "is in the output, and was left out" if made.implied else "is not in the output")
    for key in check.output:
        if key not in check.expected.tensors:
            check.fail(key, "is in the output and in nothing that made it")


def _check_plan(check: _Check, plan: Plan) -> None:
    """Hold the output's dtypes, shapes, rows and origins against a plan."""
    for fault in _other_than_planned(check.expected.said, plan) if check.expected.said is not None else ():
        check.fail("", fault)
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
        elif replace(made, crc32=0, implied=False) != made_of(step):
            check.fail(key, f"was made by {made.op} from {made.source_key or 'nothing'}, planned otherwise")


def _other_than_planned(said: Recipe, plan: Plan) -> Iterator[str]:
    """Yield what an output says of its making that a plan does not: vocabulary, metadata, sources."""
    if (said.rows, said.vocabularies) != (plan.rows, plan.vocabularies):
        yield "was made with another vocabulary than was planned"
    if dict(said.metadata or {}) != dict(plan.metadata):
        yield "carries other metadata than was planned"
    if said.target.companions and _files(said.target) != _files(plan.target):
        yield "has other files beside the weights than were planned"
    if len(said.sources) != len(plan.sources):
        yield f"was made of {len(said.sources)} sources, planned of {len(plan.sources)}"
        return
    for made, planned in zip(said.sources, plan.sources, strict=True):
        if _content(made) != _content(planned):
            yield f"was made of another {escape(planned.name)} than was planned"
        elif list(map(dict, made.operations)) != list(map(dict, planned.operations)):
            yield f"was made by other operations on {escape(planned.name)} than were planned"


def _files(target: PlanTarget) -> list[tuple[str, int, str]]:
    return [(one.name, one.size, one.sha256) for one in target.companions]


def _content(source: PlanSource) -> tuple[Any, ...]:
    """Return what tells one source from another, wherever it lies."""
    return source.root, source.stripped, [(file.name, file.size, file.sha256) for file in source.files]


def _check_values(check: _Check, key: str) -> None:
    """Hold one tensor against its checksum, then against what it was made from."""
    info, made = check.output[key], check.expected.tensors[key]
    if info.opaque:
        raise FormatError(f"its values cannot be read: {info.opaque}.")
    crc = _read_through(check, info)
    if check.expected.has_checksums and crc != made.crc32:
        check.fail(key, f"has CRC-32 {crc:08x} where {made.crc32:08x} was recorded")
        return
    storage = info.storage
    whole_record = storage is not None and info.is_plain and info.nbytes == storage.nbytes
    if storage is not None and whole_record and storage.crc32 not in (None, crc):
        check.fail(key, "does not have the checksum of its record")
        return
    _compare(check, key, info, made)
    check.advance(info.nbytes)


def _read_through(check: _Check, info: TensorInfo) -> int:
    """Return the CRC-32 of a tensor's bytes, counting NaN and Inf on the way."""
    read, floating = reader(check.output, info), DTYPES[info.dtype].kind in ("float", "complex")
    crc = 0
    for done in range(0, info.nbytes, BLOCK):
        data = read(done, min(BLOCK, info.nbytes - done))
        crc = crc32(data, crc)
        if floating:
            nan, inf = count_special(np.frombuffer(data, raw_dtype(info.dtype)), info.dtype)
            check.nan, check.inf = check.nan + nan, check.inf + inf
        check.advance(len(data))
    return crc


def _compare(check: _Check, key: str, info: TensorInfo, made: Made) -> None:
    if made.source is None:
        check.drawn += 1
        return
    wanted = [(made.source, made.source_key), *made.more]
    overlays = _step(key, made, info, check.expected.rows, []).overlays
    over = check.expected.keeper if overlays else None
    for index in (*(source for source, _ in wanted), *([over] if over is not None else [])):
        if index not in check.expected.sources:
            check.not_compared[key] = check.expected.absent.get(index, "its source is gone")
            return
    sources = [(check.expected.sources[index], name) for index, name in wanted]
    for source, name in sources:
        if name not in source:
            check.fail(key, f"came from {escape(name)}, which {escape(source.path)} does not have")
            return
    inputs = [Input(i, name, source[name].dtype, source[name].shape) for i, (source, name) in enumerate(sources)]
    step = _step(key, made, info, check.expected.rows, inputs)
    every = check.expected.vocabularies
    if (made.op, made.policy) == ("merge", "vocab") and not every:
        check.fail(key, "goes by vocabularies that the recipe does not have")
        return
    step = with_vocabularies(step, [every[index] for index, _ in wanted] if every else ())
    check_step(step)
    origins = [(source[name], source) for source, name in sources]
    keeper = check.expected.sources[over] if over is not None else None
    where = first_difference(step, info, check.output, origins, keeper=keeper, context=check.expected.context)
    if where is not None:
        check.fail(key, f"differs from {escape(made.source_key)} of {escape(sources[0][0].path)} at byte {where}")
    if step.merge is not None and step.merge.device:
        check.near += where is None
    else:
        check.compared += where is None


def _step(key: str, made: Made, info: TensorInfo, rows: Rows | None, inputs: list[Input]) -> Step:
    rows = rows if made.op == "map" else None
    if not inputs:
        return Step(key, made.op, info.dtype, info.shape, rows=rows)
    first, *more = inputs
    return Step(
        key, made.op, info.dtype, info.shape, first.source, first.key, first.dtype, first.shape,
        policy=made.policy, more=tuple(more), weights=made.weights, rows=rows, axis=made.axis, merge=made.merge,
    )  # fmt: skip


def _check_ties(check: _Check) -> None:
    """Tied keys must hold the same bytes."""
    for key, made in check.expected.tensors.items():
        if not made.tied_to or key not in check.output or made.tied_to not in check.output:
            continue
        info, owner = check.output[key], check.output[made.tied_to]
        if info.place == owner.place:
            continue
        where = first_different_byte(check.output, info, check.output, owner)
        if where is not None:
            check.fail(key, f"is tied to {escape(made.tied_to)} and differs from it at byte {where}")
