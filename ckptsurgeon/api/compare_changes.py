"""``compare_changes``: compares the changes of several models from the same base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from ..analysis.compare.changes import Changes
from ..analysis.compare.measure_changes import compare_changes as measure_changes
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, place_of
from ..checkpoint.zero_notes import seen_zero_notes
from ..destinations._load import is_configuration
from ..errors import ConfigError
from ..tensors.dtypes import DTYPES
from ..util.notes import notes_about, with_prefix
from ..util.text import count, escape
from .diff import folder_differences, folder_notes, notes_of_some
from .inputs.argument_types import CheckpointLike, Patterns, Progress, checked
from .inputs.encoding import ENCODINGS, read_as

__all__ = ["compare_changes"]


@checked
def compare_changes(
    base: CheckpointLike,
    models: Iterable[CheckpointLike],
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    root: str | None = None,
    progress: Progress | None = None,
) -> Changes:
    """Compare, tensor by tensor, the changes of two or more models from the base that they were fine-tuned from.

    A change is the difference between the weights of a model and those of the base (a task vector). The result has
    figures for each tensor, and for all tensors together. For each model, these are the norm of the change divided by
    the norm of the base, and the number of values that the model changed. For each pair of models, they are the cosine
    between their changes, and, among the values that both changed, the share that both changed in the same direction.
    Quantised tensors are decoded before they are compared. ``include`` and ``exclude`` select keys. ``root`` is the
    dotted path of the state dict in all checkpoints. ``progress`` is called with (bytes done, bytes in total).

    Raises ConfigError for fewer than two models, PatternError for a pattern that matches nothing, and PlanError for
    quantised tensors that cannot be decoded. Also raises the errors of ``open_checkpoint``, and FormatError for a wrong
    checksum.
    """
    given = list(models)
    if len(given) < 2:
        raise ConfigError(
            f"to compare changes, two or more models are needed, but the list has {count(len(given), 'model')}.",
            hint="To compare the base with a single model, run ckpt diff BASE A --values.",
        )
    for one in (base, *given):
        path = "" if isinstance(one, Checkpoint) else place_of(one)
        if path and is_configuration(path):
            raise ConfigError(f"{escape(path)} is a configuration, which has no values.", hint="Name checkpoints only.")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(one, root)) for one in (base, *given)]
        decoded = [read_as(one, ENCODINGS[1]) for one in opened]
        found = measure_changes(decoded[0], decoded[1:], include=include, exclude=exclude, progress=progress)
        compared = [one.key for one in found.tensors]
        notes = [*found.notes, *_notes(opened), *_dtype_notes(decoded, compared)]
        notes += notes_of_some(*((one.path, folder_notes(one)) for one in opened))
        notes += (
            with_prefix(f"{escape(one.path)}: ", note)
            for one in opened[1:]
            for note in folder_differences(opened[0], one)
        )
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def _notes(opened: Sequence[Checkpoint]) -> Iterator[str]:
    for one in opened:
        yield from notes_about(one.path, [*one.notes, *one.odd_scale_notes])
    yield from seen_zero_notes(opened, said=[note for one in opened for note in one.notes])


def _dtype_notes(opened: Sequence[Checkpoint], keys: Sequence[str]) -> Iterator[str]:
    """Yield a note on each model that stores tensors in a less precise dtype than the base.

    The changes of such a model include the rounding.
    """
    base, *models = opened
    for model in models:
        kinds = Counter(
            (base[key].dtype, model[key].dtype)
            for key in keys
            if key in model and model[key].shape == base[key].shape and _rounds(base[key].dtype, model[key].dtype)
        )
        for (before, after), number in kinds.items():
            yield (
                f"{escape(model.path)} has {count(number, 'tensor')} in {after} that the base has in {before}: "
                "their changes include the rounding"
            )


def _rounds(before: str, after: str) -> bool:
    """Return whether converting from dtype ``before`` to ``after`` rounds values.

    Values are rounded if both are floating-point dtypes, the two differ, and ``after`` has no more bits than
    ``before``. So conversions between bf16 and f16, which both have 16 bits, round in both directions.
    """
    if before == after or "float" not in before or "float" not in after:
        return False
    return DTYPES[after].bits <= DTYPES[before].bits
