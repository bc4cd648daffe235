"""Notes on stored embeddings of an encoder or a decoder that should use one shared embedding instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape
from ..folder import ModelFolder
from .shape_checks import DescribedTensor

__all__ = ["shared_embedding_notes"]

OWN = re.compile(r"^(.*\.)?(?:encoder|decoder)\.embed_tokens\.weight$")
"""Matches the key of an embedding that BART, T5 and similar models tie to ``shared.weight``; group 1 is the prefix."""


@notes_of(NoteKind.OTHER)
def shared_embedding_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[str]:
    """Yield a note on each embedding that is stored although the model's class ties it to ``shared.weight``.

    ``folder`` has the configuration of these weights. There are no notes on tensors that share their bytes.
    """
    if not folder.is_tied:
        return
    by_key = {one.key: one for one in tensors}
    for one in tensors:
        found = OWN.match(one.key)
        shared = by_key.get(f"{found[1] or ''}shared.weight") if found else None
        if shared is not None and shared.shape == one.shape and not (one.tied_to or shared.tied_to):
            tied = f"{escape(one.key)} is stored, although the model's class ties it to {escape(shared.key)}"
            yield f"{tied}: if the two differ, transformers versions before 5 use only {escape(shared.key)}"
