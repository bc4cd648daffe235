"""Makes notes on adapters whose changes are far larger than the base's weights, found in a sample of the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import isfinite, sqrt
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.plan.compute import LoraTerm
from ...planning.plan.plan import Plan
from ...planning.plan.step import Input, Step
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import escape, listing
from ..inputs.sampled_parts import is_local, is_sampled, middle, numbers

if TYPE_CHECKING:
    from ...tensors.ops.regions import Array  # imports numpy

__all__ = ["LARGER", "large_change_notes"]

MODULES, FEWEST = 16, 2
"""At most ``MODULES`` modules of each adapter are sampled; for a note, at least ``FEWEST`` must have too large changes.

One module is enough only if the adapter has no other module, because the weight of a single module may be small on
purpose.
"""
LARGEST = 10.0
"""The largest plausible change of a weight, as a multiple of the weight; training changes weights by some per cent."""
LARGER = "times as large as the weights of the base: perhaps the adapter's alpha or its weight in the merge is wrong"


@notes_of(NoteKind.ADAPTER_SCALE)
def large_change_notes(plan: Plan, opened: Sequence[Checkpoint]) -> Iterator[str]:
    """Yield a note on each adapter that changes most weights by more than ``LARGEST`` times their size.

    ``opened`` is the base, followed by the adapters. Some rows and columns of at most ``MODULES`` weights are read, and
    the parts of the factors that change them. DoRA modules are left out, because DoRA does not make weights larger.
    Remote files are not read.
    """
    if not all(map(is_local, opened)):
        return
    for number, changes in _changes(plan, opened[0]).items():
        found = {}
        for at in range(min(MODULES, len(changes))):
            step, term, factors = changes[at * len(changes) // min(MODULES, len(changes))]
            with suppress(CheckpointError):  # lora merge reports a tensor that cannot be read
                if (times := _times(opened[0], opened[number], step, term, factors)) is not None:
                    found[step.key] = times
        large = {key: times for key, times in found.items() if times > LARGEST}
        if len(large) >= min(FEWEST, len(changes)) and 2 * len(large) > len(found):
            times = sorted(large.values())[len(large) // 2]
            yield (
                f"in {len(large)} of {len(found)} compared weights, the changes by "
                f"{escape(plan.sources[number].name)} are about {times:,.3g} {LARGER}: {listing([*large])}"
            )


def _changes(plan: Plan, base: Checkpoint) -> dict[int, list[tuple[Step, LoraTerm, Sequence[Input]]]]:
    """Return {index of an adapter: [(step, term, factors) for each matrix to which it adds a product of factors]}.

    The index is that of the adapter in ``plan.sources``, and ``factors`` are the factors A and B. Only matrices of
    which a sample can be read are included.
    """
    found: dict[int, list[tuple[Step, LoraTerm, Sequence[Input]]]] = defaultdict(list)
    for step in plan.steps:
        if (
            step.lora is None
            or len(step.shape) != 2
            or step.source_key not in base
            or not is_sampled(base[step.source_key])
        ):
            continue
        for term, inputs in step.lora.parted(step.inputs):
            if term.kind == "product" and all(len(one.shape) == 2 for one in inputs):
                found[inputs[0].source].append((step, term, inputs))
    return found


def _times(base: Checkpoint, adapter: Checkpoint, step: Step, term: LoraTerm, factors: Sequence[Input]) -> float | None:
    """Return the ratio of a change's size to the size of the weight that it changes, in a sample; None if not finite.

    The size is the root mean square. ``step`` is the step that computes the changed weight, and ``factors`` are the
    factors A and B of the change.
    """
    a, b = factors
    box = middle(step.source_shape)
    rows, columns = box if not term.transposed else box[::-1]
    left = numbers(adapter, b.key, (rows, (0, b.shape[1])))
    right = numbers(adapter, a.key, ((0, a.shape[0]), columns))
    size, change = _rms(numbers(base, step.source_key, box)), abs(term.weight * term.scale) * _rms(left @ right)
    return change / size if size and isfinite(size) and isfinite(change) else None


def _rms(values: Array) -> float:
    return sqrt(float((values * values).mean()))
