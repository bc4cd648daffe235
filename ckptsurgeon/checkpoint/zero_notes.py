"""Makes notes on zeros that a command read, since parts of the file may be missing there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from ..storage.read.local import take_zeros
from ..util.notes import Note, with_prefix
from ..util.text import escape
from .checkpoint import Checkpoint
from .zero_runs import zero_run_notes

__all__ = ["seen_zero_notes"]

SeenZeros = dict[str, dict[str, list[int]]]
"""{path of a checkpoint: {name of its file: offsets of pages that were read and contain only zeros}}."""


def seen_zero_notes(
    checkpoints: Iterable[Checkpoint], every: Iterable[SeenZeros] | None = None, said: Collection[str] = ()
) -> Iterator[Note]:
    """Yield the notes of ``ckpt check`` on zeros that were read and may come from a missing part of the file.

    ``every`` has the zeros that were read while each file of an output was written; if it is None, they are those that
    were read up to now. A note that is contained in one of the notes ``said`` is left out.
    """
    read = list({one.path: one for one in checkpoints}.values())
    seen = [{one.path: take_zeros(one.open_files()) for one in read}] if every is None else list(every)
    for one in read:
        pages = _together(places[one.path] for places in seen if one.path in places)
        stored = one.stored or one
        for note in zero_run_notes(stored, stored.open_files(), pages=pages) if pages else ():
            if not any(note in other for other in said):
                yield with_prefix(f"{escape(one.path)}: ", note)


def _together(every: Iterable[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for one in every:
        for name, offsets in one.items():
            found.setdefault(name, set()).update(offsets)
    return {name: sorted(offsets) for name, offsets in found.items()}
