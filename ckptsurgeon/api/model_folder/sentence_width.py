"""Notes on the pooling of a sentence-transformers folder that does not fit the width of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ...errors import CheckpointError
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import escape
from .folder import ModelFolder

__all__ = ["sentence_width_notes"]

_WIDTHS = ("word_embedding_dimension", "embedding_dimension")
"""Fields of a pooling: the width of what it pools. The second name is that of version 6."""


@notes_of(NoteKind.CONFIGURATION)
def sentence_width_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note for each pooling in a subfolder whose width is not ``hidden_size`` in config.json."""
    width = folder.config.get("hidden_size")
    for name in (one.name for one in folder.files if one.name.endswith("/config.json")):
        with suppress(CheckpointError, ValueError):
            fields = folder.document(name)
            for field in _WIDTHS:
                if type(fields.get(field)) is type(width) is int and fields[field] != width:
                    yield f"{escape(name)} has {field} {fields[field]}, but the network has hidden_size {width}"
