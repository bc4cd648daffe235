"""Output layers that a model has not because they are its input embedding. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ..plan.step import Step
from ..transplant.by_place import EMBEDDING, HEAD
from ..transplant.select import SourceView
from .options import Piece, Place

__all__ = ["has_own_head", "with_tied_heads"]


def with_tied_heads(pieces: Sequence[Piece], views: Sequence[SourceView], tied: Collection[int]) -> Iterator[Piece]:
    """Yield the tensors; where one of the ``tied`` models has no output layer, its input embedding stands for it."""
    for piece in pieces:
        if not tied or not HEAD.search(piece.key):
            yield piece
            continue
        models = tuple(_place(one, piece, views, tied) for one in piece.models)
        base = _place(piece.base, piece, views, tied) if piece.base is not None else None
        yield piece._replace(models=models, base=base)


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
