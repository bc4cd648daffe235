"""One run of a plan: its inputs, the slots it fills, the checksums of what it has filled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..errors import PlanError
from ..plan import MERGES, Fit, Input, Plan, Step
from ..policies import cast_fault, fit
from ..target import TargetSpec
from ..tensors import DTYPES, TensorInfo
from ..text import count, escape
from .checksums import crc32
from .layout import OutputShape
from .libc import start_writing
from .staging import StagedFile
from .transfer import SMALL

if TYPE_CHECKING:
    from ..merges import Method

__all__ = [
    "MEMORY",
    "Inputs",
    "Progress",
    "Run",
    "check_step",
    "check_unchanged",
    "checked_on_the_way",
    "has_slot",
    "is_copy",
    "overflow_notes",
]

WRITE = 1 << 20

MEMORY = 1 << 30
"""Bytes that computing a merge may take, unless it is told otherwise."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Inputs:
    """What a plan is carried out on: its sources, open and in its order, and its destination."""

    sources: Sequence[Checkpoint]
    target: TargetSpec | None
    keeper: Checkpoint | None = None
    """The destination, where it is a checkpoint whose own values stay."""
    plugins: tuple[Method, ...] = ()
    """Merge methods of the user's own."""
    memory: int = MEMORY
    """Bytes that a merge may take where its method needs whole tensors or rows."""


@dataclass
class Run:
    """The state of one run: the slots to fill, the checksums of what is filled, what to say at the end."""

    plan: Plan
    inputs: Inputs
    shape: OutputShape
    files: Mapping[str, StagedFile]
    progress: Progress
    checksums: dict[str, int] = field(default_factory=dict)
    overflowed: dict[str, int] = field(default_factory=dict)
    nbytes_read: int = 0
    fits: tuple[Fit, ...] = ()
    check: Callable[[], None] = lambda: None
    """Raises what has gone wrong elsewhere in the run, so that what is computed beside it ends."""
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.slots: dict[str, tuple[StagedFile, int, int]] = {}
        for part in self.shape.parts:
            for key, (offset, nbytes) in part.layout.slots.items():
                self.slots[key] = (self.files[part.name], offset, nbytes)

    def advance(self, nbytes: int) -> None:
        """Tell the progress of ``nbytes`` more; from any thread."""
        with self._lock:
            self._done += nbytes
            self.progress(self._done, self.shape.size)

    def draws(self, step: Step) -> bool:
        """Whether initial values of a step are drawn, and lie in no checkpoint."""
        return step.draws and self.inputs.keeper is None

    def info(self, step: Step) -> TensorInfo:
        """Return the header of a step's first input, which must be what the plan was made from."""
        return self._part(step.inputs[0])[0]

    def parts(self, step: Step) -> list[tuple[TensorInfo, Checkpoint]]:
        """Return each input of a step: its header and the checkpoint it is of.

        Where a source is laid over values that a checkpoint keeps, those are the last.
        """
        return [*map(self._part, step.inputs), *self._kept(step)]

    def _kept(self, step: Step) -> list[tuple[TensorInfo, Checkpoint]]:
        keeper = self.inputs.keeper
        if keeper is None or not step.overlays:
            return []
        info = keeper.get(step.key)
        if info is None or info.shape != step.shape or info.opaque:
            raise PlanError(f"{escape(keeper.path)} no longer has {escape(step.key)} as it was planned.")
        return [(info, keeper)]

    def _part(self, one: Input) -> tuple[TensorInfo, Checkpoint]:
        source = self.inputs.sources[one.source]
        info = source.get(one.key)
        if info is None or (info.dtype, info.shape) != (one.dtype, one.shape) or info.opaque:
            raise PlanError(f"{escape(source.path)} no longer has {escape(one.key)} as it was planned.")
        return info, source

    def write(self, key: str, at: int, raw: memoryview) -> int:
        """Write bytes into a slot at a byte offset; returns their CRC-32."""
        file, offset, _ = self.slots[key]
        crc = 0
        for begin in range(0, len(raw), WRITE):
            view = raw[begin : begin + WRITE]
            crc = crc32(view, crc)
            file.write(offset + at + begin, view)
        if len(raw) >= SMALL:
            start_writing(file.fd, offset + at, len(raw))
        return crc


def check_unchanged(inputs: Inputs) -> None:
    """Raise PlanError where a source was written to since its header was read."""
    for source in inputs.sources:
        handles = source.open_files()
        for header in source.files:
            fd = handles[header.name].fileno() if header.name in handles else None
            if fd is None or header.mtime_ns is None:
                continue
            now = os.fstat(fd)
            if (now.st_size, now.st_mtime_ns) != (header.size, header.mtime_ns):
                name = os.path.join(source.path, header.name) if header.name else source.path
                raise PlanError(f"{escape(name)} has changed since the plan.", hint="Plan again.")


def check_step(step: Step) -> None:
    """A plan may have been written by hand: its operations must fit its shapes."""
    have, want = step.source_shape, step.shape
    if step.op == "init":
        return
    fits = {
        "copy": prod(have) == prod(want) and (have == want or prod(want) == 1),
        "keep": have == want,
        "map": _maps(step),
        "average": _merges(step) and DTYPES[step.source_dtype].is_floating,
        "lora": _adapts(step),
        "factor": _factors(step),
        "merge": _merges_by_method(step),
        "max": _merges(step) and not DTYPES[step.source_dtype].is_floating and not step.weights,
    }
    possible = fits[step.op] if step.op in fits else _resizes(step)
    if step.source is None or not possible:
        raise PlanError(f"the plan cannot be: {escape(step.key)} by {step.op} from {have} to {want}.")
    for one in step.inputs:
        fault = cast_fault(one.dtype, step.dtype)
        if fault:
            raise PlanError(f"{escape(step.key)} cannot go from {one.dtype} to {step.dtype}: {fault}.")


def _resizes(step: Step) -> bool:
    """Whether the policy of a step fits its shapes, by the operation that the step names."""
    found = fit(step.policy, step.source_shape, step.shape, step.source_dtype)
    return found.op == step.op and found.op != "init"


def _maps(step: Step) -> bool:
    """Whether the rows of a vocabulary are those of the shapes, which are alike along all other axes."""
    have, want, axis, rows = step.source_shape, step.shape, step.axis, step.rows
    if rows is None or len(have) != len(want) or not 0 <= axis < len(want):
        return False
    alike = all(h == w for i, (h, w) in enumerate(zip(have, want, strict=True)) if i != axis)
    means = rows.composed or (rows.new == "mean" and rows.fresh)
    computes = DTYPES[step.source_dtype].is_floating or not means
    return alike and have[axis] == rows.size and want[axis] == len(rows.rows) and computes


def _merges(step: Step) -> bool:
    """Whether all inputs of a step have its shape, numbers of one kind that are not packed, a weight each or none."""
    inputs, kind = step.inputs, DTYPES[step.source_dtype].kind
    alike = all(one.shape == step.shape and DTYPES[one.dtype].kind == kind for one in inputs)
    return (
        alike
        and not any(DTYPES[one.dtype].is_packed for one in inputs)
        and len(step.weights) in (0, len(inputs))
        and all(map(isfinite, step.weights))
    )


def _adapts(step: Step) -> bool:
    """Whether all inputs of a step are real numbers, with the shapes that its adapters need."""
    return step.lora is not None and _real(step) and step.lora.fits(step.shape, [one.shape for one in step.inputs])


def _factors(step: Step) -> bool:
    """Whether a step is a factor of the difference of its inputs."""
    return step.factor is not None and _real(step) and step.factor.fits(step.shape, [one.shape for one in step.inputs])


def _real(step: Step) -> bool:
    return all(DTYPES[one.dtype].kind == "float" and not DTYPES[one.dtype].is_packed for one in step.inputs)


def _merges_by_method(step: Step) -> bool:
    """Whether all inputs of a step are real floating numbers that its policy makes fit."""
    if step.merge is None:
        return False
    from .aligning import aligns  # with numpy, which copying does without

    dtypes = [DTYPES[one.dtype] for one in step.inputs]
    return all(one.kind == "float" and not one.is_packed for one in dtypes) and aligns(step)


def is_copy(step: Step, info: TensorInfo) -> bool:
    """Whether the output's bytes lie in the source as they are."""
    return step.op in ("copy", "keep") and step.dtype == info.dtype and info.is_plain


def checked_on_the_way(step: Step, info: TensorInfo) -> bool:
    """Whether all bytes of an input's record pass by when the step is computed, so that they are checked then."""
    storage = info.storage
    whole = storage is not None and info.is_plain and info.nbytes == storage.nbytes and info.numel > 0
    return step.op in MERGES and not step.policy and whole and storage is not None and storage.crc32 is not None


def has_slot(run: Run, step: Step) -> bool:
    """Whether a step has a slot of its own; in a zip an alias shares its owner's."""
    return not step.tied_to or run.slots[step.key] != run.slots[step.tied_to]


def overflow_notes(overflowed: Mapping[str, int]) -> tuple[str, ...]:
    """Say how many values of each tensor became infinite or NaN that were finite before."""
    return tuple(
        f"{count(number, 'value')} of {escape(key)} became infinite or NaN" for key, number in overflowed.items()
    )
