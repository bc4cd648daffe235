"""Output layers that a model has not because they are its input embedding. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from ..plan import Step
from .merge_options import Piece, Place
from .select import SourceView

__all__ = ["has_own_head", "vocabulary_keys", "with_tied_heads"]

HEAD = re.compile(r"^(\D*\.)?(lm_head|embed_out|output|output_layer|proj_out|decoder)\.weight$")
"""Names of output layers over a vocabulary; they lie in no numbered module."""
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embedding|embeddings|shared)\.weight$"
)
"""Names of input embeddings of a vocabulary."""


BIAS = re.compile(r"^(\D*\.)?(lm_head|embed_out|output|output_layer|proj_out|decoder|predictions)\.bias$")
"""Names of what is added to the output layer."""


def vocabulary_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys of output layers and input embeddings: their rows are a vocabulary's."""
    return [key for key in keys if any(one.search(key) for one in (HEAD, EMBEDDING, BIAS))]


def with_tied_heads(pieces: Sequence[Piece], views: Sequence[SourceView], tied: Collection[int]) -> Iterator[Piece]:
    """Yield the tensors; where one of the ``tied`` models has no output layer, its input embedding stands for it."""
    for piece in pieces:
        if not tied or not HEAD.search(piece.key):
            yield piece
            continue
        models = tuple(_place(one, piece, views, tied) for one in piece.models)
        base = _place(piece.base, piece, views, tied) if piece.base is not None else None
        yield replace(piece, models=models, base=base)


def _place(place: Place, piece: Piece, views: Sequence[SourceView], tied: Collection[int]) -> Place:
    tensors = views[place.source].tensors
    if place.key in tensors or place.source not in tied:
        return place
    found = [key for key, info in tensors.items() if EMBEDDING.search(key) and len(info.shape) == 2]
    return Place(place.source, found[0]) if len(found) == 1 else place


def has_own_head(steps: Sequence[Step], all_tied: bool) -> bool:
    """Whether the output layer is no input embedding: not all models tie it, or it is made otherwise."""
    heads = [step for step in steps if HEAD.search(step.key)]
    made = [(one.op, one.merge, one.dtype) for one in steps if EMBEDDING.search(one.key)]
    return any(not all_tied or (made and (one.op, one.merge, one.dtype) not in made) for one in heads)
