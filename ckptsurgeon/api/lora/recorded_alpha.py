"""Compares the scale of kohya's factors with the scale in the metadata of their file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import isfinite

from ...checkpoint.checkpoint import Checkpoint
from ...methods.lora.names import loose_key_parts
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import count

__all__ = ["recorded_alpha_notes"]

ALPHA, RANK = "ss_network_alpha", "ss_network_dim"
"""Entries in which kohya's scripts record the alpha and the rank of the training."""
OF_DIFFUSERS = "lora_adapter_metadata"
"""The metadata entry of diffusers that decides the scales of modules. A file that has it is not compared."""


@notes_of(NoteKind.NETWORK_ALPHA)
def recorded_alpha_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note if factors have no alpha (so their scale is 1), but the file's metadata give another scale."""
    alpha, rank = (_number(checkpoint.metadata.get(name)) for name in (ALPHA, RANK))
    if not alpha or not rank or alpha == rank or OF_DIFFUSERS in checkpoint.metadata:
        return
    modules: dict[tuple[str, str], set[str]] = {}
    for key in checkpoint:
        part = loose_key_parts(key)
        if part is not None:
            modules.setdefault((part.component, part.module), set()).add(part.part)
    number = sum("A" in parts and "alpha" not in parts for parts in modules.values())
    if number:
        scale = f"{alpha / rank:g} ({ALPHA} {alpha:g} / {RANK} {rank:g})"
        have = f"{count(number, 'module')} {'has' if number == 1 else 'have'} no alpha tensor, so the scale is 1"
        said = f"{have}, although the metadata give {scale}"
        if others := sum("alpha" in parts for parts in modules.values()):
            has = f"{count(others, 'other module')} {'has' if others == 1 else 'have'} an alpha tensor"
            yield Note(NoteKind.OTHER, f"{said}; {has}")
        else:
            yield f"{said}: to apply this alpha, run ckpt lora merge with --weights {alpha / rank:g}"


def _number(text: str | None) -> float:
    """Return the number in a text if it is above 0; 0 for any other text."""
    with suppress(ValueError):
        value = float(text or 0)
        return value if isfinite(value) and value > 0 else 0.0
    return 0.0
