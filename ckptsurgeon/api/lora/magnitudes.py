"""Makes a note on a DoRA adapter whose magnitudes do not fit the norms of the base's weights, in a sample of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.plan.compute import LoraTerm
from ...planning.plan.plan import Plan
from ...planning.plan.step import Input, Step
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import count, escape, listing, percent
from ..inputs.sampled_parts import is_local, is_sampled, numbers

__all__ = ["OTHER_NORMS", "magnitude_notes"]

MODULES, ROWS, FEWEST = 8, 64, 2
"""At most ``MODULES`` modules of each adapter and ``ROWS`` rows of each module are sampled; for a note, at least
``FEWEST`` modules must have other magnitudes.

Of a layer with 4096 inputs in 16 bits, 512 kB are read."""
APART, ALIKE = 0.2, 0.5
"""Magnitudes belong to other weights if they differ from the norms by more than the share ``APART`` (median) and have a
correlation below ``ALIKE``. PEFT begins with the norms of the rows, and training changes these by some per cent."""
OTHER_NORMS = "are not the norms of the base's weights: perhaps the adapter was trained on another base"


@notes_of(NoteKind.OTHER_BASE)
def magnitude_notes(plan: Plan, opened: Sequence[Checkpoint]) -> Iterator[str]:
    """Yield a note on each DoRA adapter whose magnitudes differ from the norms of the base's rows in most modules.

    ``opened`` is the base, followed by the adapters. Rows in the middle of at most ``MODULES`` weights are read, and
    the magnitudes of these weights. Remote files are not read, and neither are transposed weights (Conv1D), because
    their magnitudes are the norms of columns.
    """
    if not all(map(is_local, opened)):
        return
    for number, changes in _changes(plan, opened[0]).items():
        some = min(MODULES, len(changes))
        found = {}
        for step, magnitude in (changes[at * len(changes) // some] for at in range(some)):
            with suppress(CheckpointError):  # lora merge reports a tensor that cannot be read
                found[step.key] = _apart(opened[0], opened[number], step, magnitude)
        other = {key: apart for key, apart in found.items() if apart > APART}
        if len(other) >= FEWEST and 2 * len(other) > len(found):
            apart = sorted(other.values())[len(other) // 2]
            yield (
                f"for {len(other)} of {count(len(found), 'weight')} in the sample, the magnitudes in "
                f"{escape(plan.sources[number].name)} differ by {percent(apart)} (median): they {OTHER_NORMS}: "
                f"{listing([*other])}"
            )


def _changes(plan: Plan, base: Checkpoint) -> dict[int, list[tuple[Step, Input]]]:
    """Return {index of an adapter in ``plan.sources``: [(step, magnitude) for each matrix that its DoRA changes]}."""
    found: dict[int, list[tuple[Step, Input]]] = defaultdict(list)
    for step in plan.steps:
        if step.lora is None or len(step.shape) != 2 or step.source_key not in base:
            continue
        for term, inputs in step.lora.parted(step.inputs) if is_sampled(base[step.source_key]) else ():
            if _has_norms_of_rows(term, step, inputs):
                found[inputs[2].source].append((step, inputs[2]))
    return found


def _has_norms_of_rows(term: LoraTerm, step: Step, inputs: Sequence[Input]) -> bool:
    return term.kind == "dora" and not term.transposed and prod(inputs[2].shape) == step.source_shape[0]


def _apart(base: Checkpoint, adapter: Checkpoint, step: Step, magnitude: Input) -> float:
    """Return the median relative difference between DoRA's magnitudes and the norms of the base's rows, in a sample.

    Returns 0, which means no fault, if the two are strongly correlated, if a norm or a magnitude is not finite, or if a
    norm is 0.
    """
    import numpy as np

    height, width = step.source_shape
    begin = max(0, height - ROWS) // 2
    end = min(height, begin + ROWS)
    rows = numbers(base, step.source_key, ((begin, end), (0, width)))
    given = numbers(adapter, magnitude.key, tuple((0, size) for size in magnitude.shape)).reshape(-1)[begin:end]
    norms = np.sqrt((rows * rows).sum(1))
    if not norms.all() or not np.isfinite(norms).all() or not np.isfinite(given).all():
        return 0.0
    a, b = given - given.mean(), norms - norms.mean()
    if float(a @ b) >= ALIKE * float(np.sqrt((a @ a) * (b @ b))) > 0:
        return 0.0
    return float(np.median(abs(given / norms - 1)))
