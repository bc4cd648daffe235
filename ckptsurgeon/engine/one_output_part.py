"""Writes one part of an output, which is one file: decides how each tensor gets its bytes, and writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.values.value_notes import is_said_not_finite
from ..errors import FormatError, PlanError
from ..planning.plan.plan import Plan
from ..planning.plan.step import MERGES, Input, Step
from ..storage.write.staged_file import StagedFile
from ..tensors.dtypes import SATURATED
from ..tensors.info import TensorInfo
from ..tensors.torch_quantisers import codes_of
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import count, escape, listing
from .checksums import crc32
from .inputs import PlanInputs
from .output.layout import OutputFile
from .part_receipt import CHANGES, EVERY, NO_MAGNITUDE, ZERO, ZERO_DORA, PartReceipt

if TYPE_CHECKING:
    from ..tensors.ops.casts import CastLosses

__all__ = [
    "SMALL",
    "PartRun",
    "adapter_notes",
    "changed_error",
    "check_unchanged",
    "checked_on_the_way",
    "has_slot",
    "is_copy",
    "keeping",
    "lost_notes",
    "negative_notes",
    "unsound_copy_notes",
    "unsound_notes",
]

SMALL = 256 << 10
"""Fewer bytes than this are read and written by this process, which is as fast as a copy by the kernel."""
WRITE = 1 << 20
"""How many bytes are written at once."""

FEW = 10
"""A tensor gets a note if at least one in ``FEW`` of its values became zero.

A cast of usual weights to float8_e4m3fn rounds about four values in a hundred to zero.
"""


def changed_error(source: Checkpoint, key: str) -> PlanError:
    """Return the error for a tensor that is missing, or whose dtype or shape has changed since the plan was made."""
    return PlanError(
        f"{escape(source.path)} has changed since the plan was made: its tensor {escape(key)} is missing, or has a "
        "different dtype or shape.",
        hint="Make a new plan.",
    )


class PartRun:
    """The state of writing one file of an output.

    ``steps`` are the steps of the plan whose tensors are in the file. They are divided into three groups. ``copies`` is
    {key: (step, header of the tensor in the source)} for tensors whose bytes are copied. ``others`` are the steps whose
    tensors are computed or initialised. ``shared`` are the steps of tied tensors that have no bytes of their own in the
    file. A slot is the range of a tensor's bytes in the file. ``advance`` is called with the number of bytes that were
    just written, from any thread.
    """

    def __init__(
        self,
        plan: Plan,
        steps: Sequence[Step],
        inputs: PlanInputs,
        part: OutputFile,
        file: StagedFile,
        advance: Callable[[int], None],
    ) -> None:
        self.plan, self.steps, self.inputs, self.part, self.file = plan, steps, inputs, part, file
        self.advance = advance
        self.receipt = PartReceipt(part.name)
        self.keeper = plan.keeper(inputs.sources)
        self.check: Callable[[], None] = lambda: None
        """Raises the error of the copying threads, if one of them failed, so that the computation stops, too."""
        self.copies: dict[str, tuple[Step, TensorInfo]] = {}
        self.others: list[Step] = []
        self.shared: list[Step] = []
        for step in steps:
            if not has_slot(self, step):
                self.shared.append(step)
            elif step.source is not None and is_copy(step, info := self.info(step)):
                self.copies[step.key] = step, info
            else:
                self.others.append(step)

    def draws(self, step: Step) -> bool:
        """Return whether a step needs values that the destination's initialiser draws.

        If the destination is a checkpoint, no step needs them: the values in the checkpoint are used.
        """
        return step.draws and self.keeper is None

    def info(self, step: Step) -> TensorInfo:
        """Return the header of a step's first input.

        Raises PlanError if the tensor has changed since the plan was made.
        """
        assert step.source is not None
        return self._checked(step.source, step.source_key, step.source_dtype, step.source_shape)

    def sources_of(self, step: Step) -> list[tuple[TensorInfo, Checkpoint]]:
        """Return (header of the tensor, its checkpoint) for each input of a step.

        If a source provides only some of the values, and a destination checkpoint the others, the last pair is the
        tensor of the destination.
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
        if info is not None and info.opaque:
            info = codes_of(info) or info
        if info is None or info.dtype != dtype or info.shape != shape or info.opaque:
            raise changed_error(opened, key)
        return info

    def write(self, key: str, at: int, raw: memoryview) -> int:
        """Write bytes into the slot of ``key`` at the byte offset ``at``; return their CRC-32."""
        offset, _ = self.part.layout.slots[key]
        crc = 0
        for begin in range(0, len(raw), WRITE):
            view = raw[begin : begin + WRITE]
            crc = crc32(view, crc)
            self.file.write(offset + at + begin, view)
        if len(raw) >= SMALL:
            self.file.start_writing(offset + at, len(raw))
        return crc


def check_unchanged(
    sources: Iterable[Checkpoint],
    since: str = "its header was read",
    hint: str = "Run the command again; if it applies a plan, make the plan again first.",
    *,
    names: Collection[str] | None = None,
) -> None:
    """Raise PlanError if a source was written to since its header was read.

    ``since`` is the time that the message mentions, ``hint`` the hint of the error. ``names`` are the names of the
    files that are checked in each source; if it is None, all open files are checked.
    """
    for source in sources:
        handles = source.open_files()
        for name in handles if names is None else names:
            if not handles[name].closed and handles[name].has_changed():  # a shard that was consumed is closed
                path = os.path.join(source.path, name) if name else source.path
                raise PlanError(f"{escape(path)} has changed since {since}.", hint=hint)


@contextmanager
def keeping(sources: Sequence[Checkpoint]) -> Iterator[None]:
    """Keep the fetched bytes if the ``with`` block fails, so that the next run does not have to fetch them again.

    If the block raises FormatError, the bytes are not kept, since they may be wrong.
    """
    _keep(sources, True)
    try:
        yield
    except FormatError:
        _keep(sources, False)
        raise
    _keep(sources, False)


def _keep(sources: Sequence[Checkpoint], wanted: bool) -> None:
    for source in sources:
        for file in source.open_files().values():
            file.keep(wanted)


def is_copy(step: Step, info: TensorInfo) -> bool:
    """Return whether the bytes of the output tensor are exactly the bytes in the source."""
    return step.op in ("copy", "keep") and step.dtype == info.dtype and info.is_plain and step.coded is None


def checked_on_the_way(step: Step, info: TensorInfo) -> bool:
    """Return whether computing a step reads the whole storage of its input, so that its CRC-32 can be checked then."""
    storage = info.storage
    whole = storage is not None and info.is_plain and info.nbytes == storage.nbytes and info.numel > 0
    return (
        step.op in MERGES
        and not (step.policy or step.coded)
        and whole
        and storage is not None
        and storage.crc32 is not None
    )


def has_slot(run: PartRun, step: Step) -> bool:
    """Return whether a step's tensor has its own bytes in the file; in some formats, tied tensors share their bytes."""
    slots = run.part.layout.slots
    return not step.tied_to or slots[step.key] != slots.get(step.tied_to)


def unsound_notes(unsound: Mapping[str, int]) -> tuple[str, ...]:
    """Return a note on computed tensors with NaN or infinite values from their inputs, or () if there are none."""
    if not unsound:
        return ()
    texts = [f"{escape(key)} ({count(number, 'value')})" for key, number in unsound.items()]
    return (Note(NoteKind.SERIOUS, f"NaN and infinite values come from the inputs: {listing(texts, where='')}"),)


def unsound_copy_notes(copies: Mapping[str, str], said: Sequence[str]) -> tuple[str, ...]:
    """Return a note on copied tensors in which NaN or infinite values were seen, or () if there are none.

    ``copies`` is {key in the output: key in the source}. ``said`` are the notes of the plan; tensors that one of them
    names as not finite, by either key, are left out.
    """
    keys = [key for key, source in copies.items() if not any(is_said_not_finite(one, said) for one in (key, source))]
    if not keys:
        return ()
    return (Note(NoteKind.SERIOUS, f"NaN or infinite values were copied (ckpt check counts them): {listing(keys)}"),)


def lost_notes(lost: Mapping[str, CastLosses], steps: Sequence[Step]) -> tuple[str, ...]:
    """Return notes on values that became infinite, NaN, the largest value of their dtype, or zero.

    There is a note on zeros only if at least one value in ten became zero: some weights are always near zero.
    """
    if not any(one.infinite or one.zero for one in lost.values()):
        return ()
    made = {step.key: step for step in steps if step.key in lost}
    texts: list[str] = [Note(NoteKind.SERIOUS, _infinite(made[key], one)) for key, one in lost.items() if one.infinite]
    sizes = {key: prod(made[key].shape) for key, one in lost.items() if one.zero}
    zeros = [(key, lost[key].zero, size) for key, size in sizes.items() if lost[key].zero * FEW >= size]
    if len(zeros) == 1:
        key, number, size = zeros[0]
        texts.append(f"{number} of {count(size, 'value')} of {escape(key)} became zero")
    elif zeros:
        each = [f"{escape(key)} ({number} of {size})" for key, number, size in zeros]
        texts.append(f"values of {count(len(zeros), 'tensor')} became zero: {listing(each, where='')}")
    return tuple(texts)


def _infinite(step: Step, lost: CastLosses) -> str:
    kind = f"the largest value of {step.dtype}, or NaN" if step.dtype in SATURATED else "infinite or NaN"
    return f"{count(lost.infinite, 'value')} of {escape(step.key)} became {kind}"


def adapter_notes(receipts: Iterable[Mapping[str, Mapping[str, Sequence[str]]]]) -> Iterator[str]:
    """Yield notes on adapters with changes that are zero, or with DoRA magnitudes that are zero.

    ``receipts`` are the ``adapters`` of all PartReceipts.
    """
    every = list(receipts)
    for path in dict.fromkeys(path for one in every for path in one):
        keys = {kind: [key for one in every if path in one for key in one[path][kind]] for kind in CHANGES}
        number, zero, dora = len(keys[EVERY]), keys[ZERO], keys[ZERO_DORA]
        if number and number == len(zero):
            are = "its change is zero" if number == 1 else f"all of its {number} changes are zero"
            why = "a factor such as A or B, or the scale, is zero"
            yield f"{escape(path)}: {are} ({why}), so merging this adapter changes nothing"
        elif number == len(zero) + len(dora):
            are = "its product B A is" if number == 1 else f"all of its {number} products B A are"
            yield f"{escape(path)}: {are} zero, so only DoRA's magnitudes may change the base"
        elif zero or dora:
            are, they = ("is", "it was") if len(zero) + len(dora) == 1 else ("are", "they were")
            of = f"{len(zero) + len(dora)} of its {number} changes {are} zero"
            why = f"because a factor such as A or B, or the scale, is zero (perhaps {they} never trained)"
            yield f"{escape(path)}: {of}, {why}: {listing([*zero, *dora], where='')}"
        if none := keys[NO_MAGNITUDE]:
            have = f"{count(len(none), 'tensor')} {'has' if len(none) == 1 else 'have'} magnitudes of DoRA"
            yield f"{escape(path)}: {have} that are 0, so whole rows become 0: {listing(none, where='')}"


def negative_notes(negative: Mapping[str, int]) -> tuple[str, ...]:
    """Return notes on variances that became negative; ``negative`` is the number of such values by key."""
    return tuple(
        f"{count(number, 'value')} of the variance {escape(key)} became negative, but layers take their square root"
        for key, number in negative.items()
    )
