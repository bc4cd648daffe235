"""Handles tensors with several names in the models of a merge, and output layers tied to the input embedding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...util.text import escape
from ..plan.files import SourceView
from ..plan.step import Step
from ..transplant.by_place import EMBEDDING, HEAD
from .pieces import MergePiece, SourceKey

__all__ = ["ModelTies", "has_own_head", "with_tied_heads"]

# Output layers that a model does not store because they are tied to its input embedding.


def with_tied_heads(
    pieces: Sequence[MergePiece], views: Sequence[SourceView], tied: Collection[int]
) -> Iterator[MergePiece]:
    """Yield ``pieces``, the tensors of the output; the output layer also gets the models that do not store it.

    ``tied`` are the indices of the models that tie the output layer to the input embedding: in these models, the
    embedding is used as the output layer.
    """
    for piece in pieces:
        if not HEAD.search(piece.key):
            yield piece
            continue
        models = tuple(_place(one, piece, views, tied) for one in piece.models)
        base = _place(piece.base, piece, views, tied) if piece.base is not None else None
        yield piece._replace(models=models, base=base)


def _place(place: SourceKey, piece: MergePiece, views: Sequence[SourceView], tied: Collection[int]) -> SourceKey:
    tensors = views[place.source].tensors
    if place.key in tensors or place.source not in tied:
        return place
    found = [key for key, info in tensors.items() if EMBEDDING.search(key) and len(info.shape) == 2]
    return SourceKey(place.source, found[0]) if len(found) == 1 else place


def has_own_head(steps: Sequence[Step], all_tied: bool) -> bool:
    """Return whether the merged output layer differs from the input embedding.

    It differs if not all models tie the two, or if the two are merged in different ways.
    """
    heads = [step for step in steps if HEAD.search(step.key)]
    made = [(one.op, one.merge, one.dtype) for one in steps if EMBEDDING.search(one.key)]
    return bool(made) and any(not all_tied or (one.op, one.merge, one.dtype) not in made for one in heads)


class ModelTies:
    """The tied tensors (with several names) of each model of a merge; they determine the ties of the output."""

    def __init__(self, views: Sequence[SourceView], owners: Sequence[Mapping[str, str]]) -> None:
        """``owners`` has the ties of each model, as ``tied_keys`` returns them."""
        self._views, self._owners = views, owners

    def place(self, place: SourceKey, models: Sequence[SourceKey]) -> SourceKey:
        """Return ``place`` with the key under which the model stores the tensor: ``place.key``, or a key tied to it.

        A file may store a tied tensor under only one of its names: transformers leaves out the name of the output
        layer. ``models`` has the tensor's place in each model. The models that store the tensor under the key of their
        place decide: another key is only used if all of them tie it to that key.
        """
        if place.key in self._views[place.source].tensors:
            return place
        others = [one for one in models if one.key in self._views[one.source].tensors]
        names = [self._names(one) - {one.key} for one in others]  # in a slice, the same key is another layer's
        shared = set.intersection(*names) if names else set()
        mine = [key for key in self._views[place.source].tensors if key in shared]
        return place._replace(key=mine[0]) if mine else place

    def _names(self, place: SourceKey) -> set[str]:
        owners = self._owners[place.source]
        owner = owners.get(place.key, place.key)
        return {owner, *(key for key, of in owners.items() if of == owner)}

    def tied(self, steps: Sequence[Step]) -> list[Step]:
        """Return the steps; each step that makes the same tensor as an earlier step is tied to it.

        Two steps make the same tensor if they do the same and their inputs are tied in every source.
        """
        made: dict[tuple[Any, ...], str] = {}
        found = []
        for step in steps:
            origin = tuple((one.source, self._owners[one.source].get(one.key, one.key)) for one in step.inputs)
            parameters = tuple(sorted((step.merge.parameters if step.merge is not None else {}).items()))
            key = made.setdefault((origin, step.op, step.dtype, step.policy, step.axis, parameters), step.key)
            several = any(one.key in self._owners[one.source] for one in step.inputs)
            found.append(replace(step, tied_to=key) if key != step.key and several else step)
        return found

    def apart(self, steps: Sequence[Step]) -> Iterator[str]:
        """Yield a note on each pair of tensors that is tied in some model but not in the output."""
        owner_of = {step.key: step.tied_to or step.key for step in steps}
        reported: set[tuple[str, str]] = set()
        for view, owners in zip(self._views, self._owners, strict=True):
            for key, owner in owners.items():
                pair = (owner, key)
                here = key in owner_of and owner in owner_of
                if here and owner_of[key] != owner_of[owner] and pair not in reported:
                    reported.add(pair)
                    name = escape(view.source.name)
                    yield f"{escape(owner)} and {escape(key)} are one tensor in {name}, and two in the output"
