"""Makes the notes on a transplant that are known before its plan is made."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...planning.layouts.recognise import recognised
from ...planning.target import TargetSpec
from ...storage.read.spec import SourceSpec
from ...util.notes import with_prefix
from ...util.text import escape
from ..inputs.encoding import ENCODINGS, encoding_notes
from ..inputs.inputs import notes_on
from .recognition import KnownSource

__all__ = ["first_notes"]

STACKED, PLAIN = "stacked", "transformers"
"""The layouts of networks with experts in the memory of transformers 5, and in the files that it writes."""
_OF_ONE = re.compile(r"\.experts\.[0-9]+\.")
_OF_ALL = re.compile(r"\.experts\.[a-z][a-z_]*$")


def first_notes(
    specs: Sequence[SourceSpec],
    sources: Sequence[KnownSource],
    target: TargetSpec,
    opened: Sequence[Checkpoint],
    encoding: str,
) -> list[str]:
    """Return notes on the sources, their layouts and the destination.

    ``opened`` are the sources as they were opened, followed by the destination if it is a checkpoint.
    """
    read = [*(one.operated.checkpoint for one in sources), *opened[len(specs) :]]
    return [
        *_notes(specs, sources, target),
        *_stacked_experts_notes(target, opened),
        *(encoding_notes(read, encoding) if encoding != ENCODINGS[0] else ()),
    ]


def _notes(specs: Sequence[SourceSpec], sources: Sequence[KnownSource], target: TargetSpec) -> list[str]:
    """Return notes on the sources and their layouts, and the notes that were made while the destination was loaded."""
    notes = [note for spec in specs for note in spec.notes]
    for one in sources:
        checkpoint = one.operated.checkpoint
        notes += (*notes_on(checkpoint, len(sources) + bool(target.keeps)), *one.operated.derived.notes)
        if checkpoint.stripped:
            notes.append(f"the prefix {', '.join(checkpoint.stripped)} was removed from the keys of {checkpoint.path}")
    for one in sources:
        where = f"{escape(one.operated.checkpoint.path)}: " if len(sources) > 1 else ""
        notes += (with_prefix(where, note) for note in one.recognised.notes)
    return [*notes, *(f"ran {code}" for code in target.ran), *target.notes]


def _stacked_experts_notes(target: TargetSpec, sources: Sequence[Collection[str]]) -> Iterator[str]:
    """Yield a note if a network of transformers has the experts of a layer in one tensor, and the sources do not.

    ``sources`` are the keys of each source as they are stored. Programs that read files of ``save_pretrained``, which
    have a tensor for each expert, do not find the keys of such an output.
    """
    if target.kind != "transformers" or any(map(_OF_ONE.search, target.tensors)):
        return
    key = next(filter(_OF_ALL.search, target.tensors), "")
    if not key or any(_OF_ALL.search(one) for keys in sources for one in keys):
        return
    has_layout = any(layout.name == STACKED for _, layout in recognised(target.tensors))
    if not (has_layout or any(_OF_ONE.search(one) for keys in sources for one in keys)):
        return
    back = (
        f"ckpt convert OUT --layout {PLAIN} -o NAME/ gives each expert its own tensors"
        if has_layout
        else "save_pretrained of transformers gives each expert its own tensors"
    )
    yield (
        "the keys are those of the network that transformers 5 builds, with the experts of a layer in one tensor "
        f"({escape(key)}); {back}"
    )
