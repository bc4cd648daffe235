"""One run of a plan: its inputs, the places in the output (slots) that it fills, the checksums of written bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from ..checkpoint.checkpoint import Checkpoint
from ..errors import PlanError
from ..planning.plan.plan import Plan
from ..planning.plan.receipt import FactorFit, RoundedTensor
from ..planning.plan.step import MERGES, Input, Step
from ..storage.read.base import Progress
from ..storage.write.staging import StagedFile
from ..tensors.dtypes import SATURATED
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing
from .checksums import crc32
from .inputs import PlanInputs
from .output.layout import OutputShape
from .transfer import SMALL

if TYPE_CHECKING:
    from ..tensors.ops.casts import CastLosses

__all__ = [
    "PlanRun",
    "changed_error",
    "check_unchanged",
    "checked_on_the_way",
    "has_slot",
    "is_copy",
    "lost_notes",
    "negative_notes",
    "unsound_notes",
]

WRITE = 1 << 20

FEW = 10
"""A tensor gets a note if at least one of this many values became zero.

A cast of usual weights to float8_e4m3fn rounds about four in a hundred to zero.
"""


def changed_error(source: Checkpoint, key: str) -> PlanError:
    """Return the error for a tensor that is gone, or has another dtype or shape than when the plan was made."""
    return PlanError(
        f"{escape(source.path)} has changed since the plan was made: its tensor {escape(key)} is gone, or has another "
        "dtype or shape.",
        hint="Make a new plan.",
    )


@dataclass
class PlanRun:
    """The state of one run of a plan: the slots to fill, their checksums, and counts for the notes at the end.

    A slot is the place of a tensor's bytes in the output. ``copies`` has the steps whose bytes are copied, each with
    the tensor's header in the source. ``others`` are the steps whose tensors are computed or initialised. ``shared``
    are the steps of tied names whose bytes are in the slot of another name.
    """

    plan: Plan
    inputs: PlanInputs
    shape: OutputShape
    files: Mapping[str, StagedFile]
    progress: Progress
    checksums: dict[str, int] = field(default_factory=dict)
    lost: dict[str, CastLosses] = field(default_factory=dict)
    unsound: dict[str, int] = field(default_factory=dict)
    negative: dict[str, int] = field(default_factory=dict)
    nbytes_read: int = 0
    fits: tuple[FactorFit, ...] = ()
    rounded: tuple[RoundedTensor, ...] = ()
    check: Callable[[], None] = lambda: None
    """Raises the error of another part of the run, if that failed, so that computing stops."""
    _done: int = 0
    _fetched: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.keeper = self.inputs.keeper(self.plan)
        first, *others = self.shape.parts
        self._first = first
        self._part_of = {key: part for part in others for key in part.layout.slots}
        self.copies: dict[str, tuple[Step, TensorInfo]] = {}
        self.others: list[Step] = []
        self.shared: list[Step] = []
        for step in self.plan.steps:
            if not has_slot(self, step):
                self.shared.append(step)
            elif step.source is not None and is_copy(step, info := self.info(step)):
                self.copies[step.key] = step, info
            else:
                self.others.append(step)

    def slot(self, key: str) -> tuple[StagedFile, int, int]:
        """Return the file, the offset and the number of bytes of a key's slot; raises KeyError for an unknown key."""
        part = self._part_of.get(key, self._first)
        return self.files[part.name], *part.layout.slots[key]

    def slots(self) -> Iterator[tuple[str, StagedFile, int, int]]:
        """Yield every key with the file, the offset and the number of bytes of its slot, in the order of the output."""
        for part in self.shape.parts:
            file = self.files[part.name]
            for key, (offset, nbytes) in part.layout.slots.items():
                yield key, file, offset, nbytes

    def fetched(self, nbytes: int) -> None:
        """Set the progress to the number of bytes that were fetched before writing began."""
        self._done = self._fetched = nbytes

    def advance(self, nbytes: int) -> None:
        """Report to the progress that ``nbytes`` more bytes were written; may be called from any thread."""
        with self._lock:
            self._done += nbytes
            self.progress(self._done, self.shape.size + self._fetched)

    def draws(self, step: Step) -> bool:
        """Return whether a step needs values that the destination's initialiser draws.

        If the destination is a checkpoint, no step needs them: the checkpoint has values.
        """
        return step.draws and self.keeper is None

    def info(self, step: Step) -> TensorInfo:
        """Return the header of a step's first input; raises PlanError if it has changed since the plan was made."""
        assert step.source is not None
        return self._checked(step.source, step.source_key, step.source_dtype, step.source_shape)

    def parts(self, step: Step) -> list[tuple[TensorInfo, Checkpoint]]:
        """Return each input of a step: its header and its checkpoint.

        If the source gives only some of the values, and a checkpoint keeps the others, the tensor of that checkpoint
        comes last.
        """
        first = [] if step.source is None else [(self.info(step), self.inputs.sources[step.source])]
        return [*first, *map(self._part, step.more), *self._kept(step)]

    def _kept(self, step: Step) -> list[tuple[TensorInfo, Checkpoint]]:
        keeper = self.keeper
        if keeper is None or not step.overlays:
            return []
        info = keeper.get(step.key)
        if info is None or info.shape != step.shape or info.opaque:
            raise changed_error(keeper, step.key)
        return [(info, keeper)]

    def _part(self, one: Input) -> tuple[TensorInfo, Checkpoint]:
        return self._checked(*one), self.inputs.sources[one.source]

    def _checked(self, source: int, key: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
        opened = self.inputs.sources[source]
        info = opened.get(key)
        if info is None or info.dtype != dtype or info.shape != shape or info.opaque:
            raise changed_error(opened, key)
        return info

    def write(self, key: str, at: int, raw: memoryview) -> int:
        """Write bytes into the slot of ``key`` at the byte offset ``at``; return their CRC-32."""
        file, offset, _ = self.slot(key)
        crc = 0
        for begin in range(0, len(raw), WRITE):
            view = raw[begin : begin + WRITE]
            crc = crc32(view, crc)
            file.write(offset + at + begin, view)
        if len(raw) >= SMALL:
            file.start_writing(offset + at, len(raw))
        return crc


def check_unchanged(inputs: PlanInputs) -> None:
    """Raise PlanError if a source was written to since its header was read."""
    for source in inputs.sources:
        handles = source.open_files()
        for header in source.files:
            if header.name not in handles or header.mtime_ns is None:
                continue
            with handles[header.name].descriptor() as fd:
                now = None if fd is None else os.fstat(fd)
            if now is not None and (now.st_size, now.st_mtime_ns) != (header.size, header.mtime_ns):
                name = os.path.join(source.path, header.name) if header.name else source.path
                raise PlanError(f"{escape(name)} has changed since the plan was made.", hint="Make a new plan.")


def is_copy(step: Step, info: TensorInfo) -> bool:
    """Return whether the bytes of the output tensor are in the source as they are."""
    return step.op in ("copy", "keep") and step.dtype == info.dtype and info.is_plain and step.coded is None


def checked_on_the_way(step: Step, info: TensorInfo) -> bool:
    """Return whether computing a step reads the whole storage of an input, and so can check its checksum, too."""
    storage = info.storage
    whole = storage is not None and info.is_plain and info.nbytes == storage.nbytes and info.numel > 0
    return (
        step.op in MERGES
        and not (step.policy or step.coded)
        and whole
        and storage is not None
        and storage.crc32 is not None
    )


def has_slot(run: PlanRun, step: Step) -> bool:
    """Return whether a step's tensor has its own place in the output; in some formats, tied names share one place."""
    return not step.tied_to or run.slot(step.key) != run.slot(step.tied_to)


def unsound_notes(unsound: Mapping[str, int]) -> tuple[str, ...]:
    """Return a note on computed tensors with NaN or infinite values that come from their inputs; empty without any."""
    if not unsound:
        return ()
    texts = [f"{escape(key)} ({count(number, 'value')})" for key, number in unsound.items()]
    return (f"NaN and infinite values come from the inputs: {listing(texts, where='')}",)


def lost_notes(lost: Mapping[str, CastLosses], steps: Sequence[Step]) -> tuple[str, ...]:
    """Return notes on values that became infinite, NaN, the largest of their dtype, or zero.

    There is a note on zeros only if at least one value in ten became zero: weights always have some near zero.
    """
    if not any(one.infinite or one.zero for one in lost.values()):
        return ()
    made = {step.key: step for step in steps if step.key in lost}
    texts = [
        f"{count(one.infinite, 'value')} of {escape(key)} became "
        + (f"the largest of {made[key].dtype}, or NaN" if made[key].dtype in SATURATED else "infinite or NaN")
        for key, one in lost.items()
        if one.infinite
    ]
    sizes = {key: prod(made[key].shape) for key, one in lost.items() if one.zero}
    zeros = [(key, lost[key].zero, size) for key, size in sizes.items() if lost[key].zero * FEW >= size]
    if len(zeros) == 1:
        key, number, size = zeros[0]
        texts.append(f"{number} of {count(size, 'value')} of {escape(key)} became zero")
    elif zeros:
        each = [f"{escape(key)} ({number} of {size})" for key, number, size in zeros]
        texts.append(f"values of {count(len(zeros), 'tensor')} became zero: {listing(each, where='')}")
    return tuple(texts)


def negative_notes(negative: Mapping[str, int]) -> tuple[str, ...]:
    """Return notes on variances that became negative; ``negative`` has the number of such values by key."""
    return tuple(
        f"{count(number, 'value')} of {escape(key)} became negative, but layers take their square root"
        for key, number in negative.items()
    )
