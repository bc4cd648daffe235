"""A note on an adapter in the folder of a complete model: if PEFT is installed, transformers also loads the adapter."""

from __future__ import annotations

from collections.abc import Iterator

from ...destinations.hf.files import ADAPTER, ADAPTER_WEIGHTS
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import escape
from .weights.shape_checks import UNLOADED

__all__ = ["adapter_notes"]


@notes_of(NoteKind.ADAPTER_BESIDE)
def adapter_notes(weights: str | None) -> Iterator[str]:
    """Yield a note if the folder of a complete model also has an adapter_config.json.

    If PEFT is installed, ``from_pretrained`` then loads the adapter too, and fails if the adapter's weights are
    missing. ``weights`` is the name of the file with the adapter's weights: '' if this file is missing, None if there
    is no adapter_config.json.
    """
    if weights:
        yield f"transformers also applies the adapter in {ADAPTER} ({escape(weights)}) when it loads this folder"
    elif weights is not None:
        yield Note(
            NoteKind.ADAPTER_WITHOUT_WEIGHTS,
            f"the folder has an {ADAPTER}, but no {ADAPTER_WEIGHTS[0]}: {UNLOADED} if PEFT is installed",
        )
