"""Carries a plan out: copies, computes, draws, records checksums, puts the output in place."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import OutputError, PlanError
from ..formats import RECIPE_FILE, folder_digest, seal
from ..ops import Array, cast, raw_dtype
from ..plan import Plan, Receipt, Step
from ..recipe import Recipe, recipe_text
from ..tensors import Storage, TargetSpec, TensorInfo
from ..text import count, escape, listing
from .compute import computed_blocks, overlay
from .layout import OutputOptions, OutputShape, existing_checkpoint, lay_out
from .output import StagedFile, StagedFolder, check_output, identities, staged_file, staged_folder
from .transfer import Copy, Piece, bad_checksum, check_range, combine, crc32, run_copies

__all__ = ["Inputs", "Progress", "carry_out", "check_sources", "check_step"]

WRITE = 1 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Inputs:
    """What a plan is carried out on: its sources, open and in its order, and its destination."""

    sources: Sequence[Checkpoint]
    target: TargetSpec | None


@dataclass
class _Run:
    """The state of one run: the slots to fill, the checksums of what is filled, what to say at the end."""

    plan: Plan
    inputs: Inputs
    shape: OutputShape
    files: Mapping[str, StagedFile]
    progress: Progress
    checksums: dict[str, int] = field(default_factory=dict)
    overflowed: dict[str, int] = field(default_factory=dict)
    nbytes_read: int = 0
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.slots: dict[str, tuple[StagedFile, int, int]] = {}
        for part in self.shape.parts:
            for key, (offset, nbytes) in part.layout.slots.items():
                self.slots[key] = (self.files[part.name], offset, nbytes)

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            self.progress(self._done, self.shape.size)

    def info(self, step: Step) -> TensorInfo:
        """Return the source's header of a step, which must be what the plan was made from."""
        assert step.source is not None
        source = self.inputs.sources[step.source]
        info = source.get(step.source_key)
        if info is None or info.dtype != step.source_dtype or info.shape != step.source_shape or info.opaque:
            raise PlanError(f"{escape(source.path)} no longer has {escape(step.source_key)} as it was planned.")
        return info

    def write(self, key: str, at: int, values: Array) -> int:
        """Write values into a slot at a byte offset; returns their CRC-32."""
        file, offset, _ = self.slots[key]
        raw = np.ascontiguousarray(values).reshape(-1).view("u1").data
        crc = 0
        for begin in range(0, len(raw), WRITE):
            view = raw[begin : begin + WRITE]
            crc = crc32(view, crc)
            file.write(offset + at + begin, view)
        return crc


def carry_out(
    plan: Plan, inputs: Inputs, options: OutputOptions, recipe: Recipe, progress: Progress | None = None
) -> Receipt:
    """Carry a plan out and return what was written.

    Raises PlanError where a step does not fit its source or tied values differ, FormatError where a source fails
    its checksum, SourceError and OutputError where a file cannot be read or written. Nothing is left half done.
    """
    began = time.perf_counter()
    for step in plan.steps:
        check_step(step)
    shape = lay_out(plan, options, recipe_text(recipe))
    with _staged(shape, inputs, plan, options) as (files, folder):
        run = _Run(plan, inputs, shape, files, progress or (lambda done, total: None))
        check_sources(plan, inputs.sources)
        _check_storages(run)
        _copy(run)
        _compute(run)
        _draw(run)
        _finish(run, recipe, folder)
    notes = tuple(
        f"{count(number, 'value')} of {escape(key)} became infinite when cast" for key, number in run.overflowed.items()
    )
    return Receipt(
        output=options.path,
        counts=plan.counts,
        unexpected=tuple(key for _, key in plan.unexpected),
        nbytes_read=run.nbytes_read,
        nbytes_written=shape.size,
        elapsed_s=time.perf_counter() - began,
        plan_sha256=plan.sha256(),
        notes=notes,
    )


def check_step(step: Step) -> None:
    """A plan may have been written by hand: its operations must fit its shapes."""
    have, want = step.source_shape, step.shape
    if step.op == "init":
        return
    pairs = list(zip(have, want, strict=False))
    fits = {
        "copy": prod(have) == prod(want) and (have == want or prod(want) == 1),
        "keep": have == want and step.source_dtype == step.dtype,
        "slice": len(have) == len(want) and all(h >= w for h, w in pairs),
        "pad": len(have) == len(want) and all(h <= w for h, w in pairs),
        "overlap": len(have) == len(want),
        "interpolate": len(have) == len(want) and 0 not in have and 0 not in want,
    }
    if step.source is None or not fits[step.op]:
        raise PlanError(f"the plan cannot be: {escape(step.key)} by {step.op} from {have} to {want}.")


def check_sources(plan: Plan, sources: Sequence[Checkpoint]) -> None:
    """Raise PlanError where two keys that the destination ties hold different values."""
    for pair in plan.equal:
        source = sources[pair.source]
        step = Step(pair.first, "copy", source[pair.first].dtype, source[pair.first].shape)
        first = computed_blocks(step, source[pair.first], source.file(source[pair.first]))
        second = computed_blocks(step, source[pair.second], source.file(source[pair.second]))
        for (_, a, _), (_, b, _) in zip(first, second, strict=True):
            if not np.array_equal(a.view("u1"), b.view("u1")):
                raise PlanError(
                    f"{escape(pair.first)} and {escape(pair.second)} of {escape(source.path)} differ, "
                    "but the destination ties them.",
                    hint="Exclude the one that should not count.",
                )


@contextmanager
def _staged(
    shape: OutputShape, inputs: Inputs, plan: Plan, options: OutputOptions
) -> Iterator[tuple[Mapping[str, StagedFile], StagedFolder | None]]:
    """Give the temp files of an output by their names."""
    path = os.path.realpath(options.path) if shape.folder else options.path
    taken = set(_identities(inputs, plan))
    check_output(path, taken, force=options.force, folder=shape.folder)
    if not shape.folder:
        with staged_file(path, shape.size, force=options.force) as file:
            yield {"": file}, None
        return
    suffix = os.path.splitext(shape.parts[0].name)[1]
    present = existing_checkpoint(path, suffix)
    if present and not options.force:
        raise OutputError(
            f"{escape(options.path)} holds a checkpoint: {listing(present)}.",
            hint="Use --force to replace it.",
        )
    with staged_folder(path, shape.size, stale=present) as folder:
        yield {part.name: folder.file(part.name, part.layout.size) for part in shape.parts}, folder


def _identities(inputs: Inputs, plan: Plan) -> Iterator[tuple[int, int]]:
    for source in inputs.sources:
        yield from identities(source.open_files().values())
    for file in plan.target.files:
        if os.path.exists(file.name):
            found = os.stat(file.name)
            yield found.st_dev, found.st_ino


def _is_copy(step: Step, info: TensorInfo) -> bool:
    return step.op in ("copy", "keep") and step.dtype == info.dtype and info.is_plain


def _copy(run: _Run) -> None:
    """Copy every tensor whose bytes stay as they are."""
    copies, pieces = [], {}
    for step in run.plan.steps:
        if step.source is None or not _writes(run, step):
            continue
        info = run.info(step)
        if not _is_copy(step, info):
            continue
        source = run.inputs.sources[step.source]
        file, offset, nbytes = run.slots[step.key]
        assert info.storage is not None
        whole = info.nbytes == info.storage.nbytes
        piece = Piece(info.storage.name, nbytes, info.storage.crc32 if whole else None)
        pieces[step.key] = piece
        copies.append(Copy(source.file(info), info.storage.offset + info.offset, file, offset, [piece]))
    run.nbytes_read += run_copies(copies, run.advance)
    run.checksums.update({key: piece.checksum() for key, piece in pieces.items()})


def _writes(run: _Run, step: Step) -> bool:
    """Whether a step has a slot of its own; in a zip an alias shares its owner's."""
    return not step.tied_to or run.slots[step.key] != run.slots[step.tied_to]


def _check_storages(run: _Run) -> None:
    """Check the records of which only a part is used, or which are computed with."""
    wanted: dict[int, tuple[Checkpoint, TensorInfo, Storage]] = {}
    for step in run.plan.steps:
        if step.source is None:
            continue
        info = run.info(step)
        storage = info.storage
        if storage is None or storage.crc32 is None:
            continue
        if not (_is_copy(step, info) and info.nbytes == storage.nbytes):
            wanted[id(storage)] = (run.inputs.sources[step.source], info, storage)
    for source, info, storage in wanted.values():
        file = source.file(info)
        if check_range(file, storage.offset, storage.nbytes) != storage.crc32:
            raise bad_checksum(file, storage.name)


def _compute(run: _Run) -> None:
    """Write every tensor that is cast, sliced, interpolated or gathered from strides."""
    for step in run.plan.steps:
        if step.source is None or step.draws or not _writes(run, step):
            continue
        info = run.info(step)
        if _is_copy(step, info):
            continue
        file = run.inputs.sources[step.source].file(info)
        parts = []
        for offset, values, lost in computed_blocks(step, info, file):
            parts.append((run.write(step.key, offset, values), values.nbytes))
            run.advance(values.nbytes)
            if lost:
                run.overflowed[step.key] = run.overflowed.get(step.key, 0) + lost
        run.nbytes_read += info.nbytes
        run.checksums[step.key] = combine(parts)


def _draw(run: _Run) -> None:
    """Write every tensor that starts from the destination's own initial values, one at a time."""
    steps = {step.key: step for step in run.plan.steps if step.draws and not step.tied_to}
    aliases: dict[str, list[Step]] = {}
    for step in run.plan.steps:
        if step.draws and step.tied_to and _writes(run, step):
            aliases.setdefault(step.tied_to, []).append(step)
    target = run.inputs.target
    if not steps:
        return
    assert target is not None
    for key, data in target.initial(list(steps), run.plan.seed):
        step = steps[key]
        values = _drawn(run, step, target.tensors[key].dtype, data)
        for each in (step, *aliases.get(key, ())):
            run.checksums[each.key] = run.write(each.key, 0, values)
            run.advance(values.nbytes)
        del values, data


def _drawn(run: _Run, step: Step, dtype: str, data: memoryview) -> Array:
    """Return a tensor's initial values in the step's dtype, the source's part laid over them."""
    drawn = np.frombuffer(data, raw_dtype(dtype)).reshape(step.shape)
    values, lost = cast(drawn, dtype, step.dtype)
    if step.op != "init":
        info = run.info(step)
        assert step.source is not None
        values = np.ascontiguousarray(values)
        lost += overlay(step, info, run.inputs.sources[step.source].file(info), values)
        run.nbytes_read += info.nbytes
    if lost:
        run.overflowed[step.key] = lost
    return values


def _finish(run: _Run, recipe: Recipe, folder: StagedFolder | None) -> None:
    """Write everything that is no tensor, sealed."""
    for step in run.plan.steps:
        if step.key not in run.checksums:
            run.checksums[step.key] = run.checksums[step.tied_to]
    text = recipe_text(recipe.with_checksums(run.checksums))
    if folder is None:
        part = run.shape.parts[0]
        text = seal(text, _digest(part.layout.frame(run.checksums, text)))
        for offset, data in part.layout.frame(run.checksums, text):
            run.files[part.name].write(offset, data)
        return
    digests = {}
    for part in run.shape.parts:
        frame = part.layout.frame(run.checksums, "")
        digests[part.name] = _digest(frame)
        for offset, data in frame:
            run.files[part.name].write(offset, data)
    name, index = run.shape.index
    if name:
        folder.text(name, index)
        digests[name] = hashlib.sha256(index.encode("utf-8", "surrogatepass")).hexdigest()
    digests[RECIPE_FILE] = hashlib.sha256(text.encode()).hexdigest()
    folder.text(RECIPE_FILE, seal(text, folder_digest(digests)))


def _digest(frame: Sequence[tuple[int, bytes]]) -> str:
    digest = hashlib.sha256()
    for _, data in frame:
        digest.update(data)
    return digest.hexdigest()
