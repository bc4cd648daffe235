"""Prepares tensors of the same name for merging, if their shapes differ or some models lack them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ...errors import PlanError
from ...tensors.dtypes import DTYPES
from ...util.text import count, escape, grouped, listing, shape_text
from ..keys.transposed import is_transposed, square_siblings, transposed_note
from ..keys.wrappers import without_wrappers
from ..llama_cpp.names import layout_hint
from ..mismatch.policy_syntax import is_reshape
from ..plan.step import Input
from ..transplant.by_place import PositionalRows, ShapeChange
from ..transplant.select import SourceView
from .options import MergeOptions, MergePiece, SourceKey
from .vocabulary import MergeAxes

__all__ = ["UNWRAP", "FittedInputs", "MissingTensors", "ShapeFitting", "input_of", "named_keys"]

# Tensors that models lack although no option allows it.

UNWRAP = "Use --unwrap: the keys differ only in the wrappers that training added."
_FACTOR = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|down|up)(?:\.|$)")
"""Matches the name of a low-rank factor of an adapter in a key."""
ALIKE = "Merge models of the same architecture, or use --on-missing base, skip or any."


class MissingTensors:
    """Collects tensors that some model lacks, to report all of them in one error."""

    def __init__(self, views: Sequence[SourceView]) -> None:
        self._views = views
        self._keys: dict[int, list[str]] = {}

    def add(self, place: SourceKey, key: str) -> None:
        """Record that the model ``place.source`` lacks a tensor, whose key in the output is ``key``."""
        self._keys.setdefault(place.source, []).append(key)

    def check(self) -> None:
        """Raise PlanError if any tensor is missing; the error lists all of them."""
        if not self._keys:
            return
        (first, keys), *others = self._keys.items()
        lacks = [f"{self._name(first)} lacks {listing(keys)}"]
        lacks += [f"{self._name(source)} lacks {count(len(k), 'tensor')}" for source, k in others]
        raise PlanError(
            f"{'; '.join(lacks)}.",
            hint=self._hint(),
            details=[f"{self._views[source].source.name}: {key}" for source, k in self._keys.items() for key in k],
        )

    def _name(self, source: int) -> str:
        return escape(self._views[source].source.name)

    def _hint(self) -> str:
        """Return a hint: what the user can do about tensors that some model lacks."""
        if self._are_wrapped():
            return UNWRAP
        return layout_hint(named_keys(self._views)) or self._of_adapters() or ALIKE

    def _of_adapters(self) -> str:
        """Return a hint if some of the sources are adapters and others are models; '' if not."""
        adapters = [view.source.name for view in self._views if view.tensors and all(map(_FACTOR.search, view.tensors))]
        if not 0 < len(adapters) < len(self._views):
            return ""
        name = escape(adapters[0])
        return f"{name} is an adapter. First add each adapter to its base: ckpt lora merge BASE {name} -o FULL/."

    def _are_wrapped(self) -> bool:
        """Return whether all missing keys would be found if wrappers such as ``module.`` were removed from all keys."""
        bare = {source: set(map(without_wrappers, self._views[source].tensors)) for source in self._keys}
        return all(without_wrappers(key) in bare[source] for source, keys in self._keys.items() for key in keys)


def named_keys(views: Iterable[SourceView]) -> Iterator[tuple[str, Collection[str]]]:
    """Return an iterator with a pair for each model: its name, and the keys of its tensors."""
    return ((view.source.name, view.tensors.keys()) for view in views)


Shape = tuple[int, ...]


class FittedInputs(NamedTuple):
    """The tensors that are merged into one output tensor, and how their shapes are made equal.

    ``inputs`` maps the index of each model to its tensor, ``base`` is the base's tensor, if there is a base. ``shape``
    is the output's shape. ``policy`` says how other shapes are made to fit this shape: slice, overlap, vocab, or "" if
    all are equal. ``axis`` is the vocabulary axis if the policy is ``vocab``.
    """

    inputs: Mapping[int, Input]
    base: Input | None
    shape: Shape
    policy: str = ""
    axis: int = 0


def input_of(views: Sequence[SourceView], place: SourceKey) -> Input:
    """Return a tensor of a source as an input of a step, with its key, dtype and shape."""
    info = views[place.source].tensors[place.key]
    return Input(place.source, place.key, info.dtype, info.shape)


def _alike(one: Shape, other: Shape) -> bool:
    """Return whether tensors of these two shapes can be merged as they are, without a policy."""
    return one == other or is_reshape(one, other)


class ShapeFitting:
    """Fits the tensors of the output one by one; one error then reports all tensors that do not fit."""

    def __init__(self, views: Sequence[SourceView], options: MergeOptions, keys: Sequence[str]) -> None:
        self._views = views
        self._names = [view.source.name for view in views]
        self._policies, self._overlooked = options.mismatch.by_key(keys)
        self._everywhere = options.mismatch.everywhere
        self.axes = MergeAxes(options.vocabulary, self._names, keys) if options.vocabulary is not None else None
        self._rows = options.vocabulary.size if options.vocabulary is not None else 0
        self._unlike: list[tuple[str, str]] = []
        self._moved: list[ShapeChange] = []
        self._turned: list[str] = []
        self._shapes: dict[str, Shape] = {}

    def fitted(self, piece: MergePiece, there: Mapping[int, SourceKey], base: SourceKey | None) -> FittedInputs:
        """Return the tensors that can be merged into the output tensor ``piece``, with the shape of the output.

        ``there`` maps the index of each model to the model's tensor, ``base`` is the tensor of the base. Tensors that
        do not fit are recorded; ``check`` reports them.
        """
        inputs = {number: input_of(self._views, place) for number, place in there.items()}
        own = input_of(self._views, base) if base is not None else None
        first = own or next(iter(inputs.values()))
        every = [*inputs.values(), *([own] if own is not None else [])]
        kinds = {DTYPES[one.dtype].kind for one in every}
        if self.axes is not None and kinds == {"float"}:
            axis = self.axes.axis(piece.key, every)
            if axis is not None:
                shape = (*first.shape[:axis], self._rows, *first.shape[axis + 1 :])
                return FittedInputs(inputs, own, shape, "vocab", axis)
        turned = any(one.shape != first.shape and is_transposed(one.shape, first.shape) for one in every)
        self._turned += [piece.key] if turned else []
        self._shapes |= {} if turned else {piece.key: first.shape}
        policy = self._policies.get(piece.key, self._everywhere)
        fitting = {number: one for number, one in inputs.items() if self._fits(piece.key, first, one, policy)}
        moves = policy in ("slice", "overlap") and any(not _alike(one.shape, first.shape) for one in fitting.values())
        if moves:
            self._moved += (ShapeChange((piece.key,), one.shape, first.shape) for one in fitting.values())
        return FittedInputs(fitting, own, first.shape, policy if moves else "")

    def notes(self) -> Iterator[str]:
        """Yield notes on patterns that may match too few keys, and on rows mapped by token or merged by position."""
        yield from self._overlooked
        if self.axes is not None:
            yield from self.axes.notes()
        if moved := [one for one in self._moved if one.have != one.want]:
            yield from PositionalRows(moved, {}).merged()
        if self._turned:
            square = square_siblings(self._turned, self._shapes)
            yield transposed_note(self._turned, square, "ckpt rename --operations")

    def _fits(self, key: str, first: Input, one: Input, policy: str) -> bool:
        """Return whether ``one`` can be merged with ``first``, as it is or after the policy changed its shape.

        If not, and the policy is not ``skip``, the tensor is recorded, and ``check`` reports it.
        """
        same_kind = DTYPES[one.dtype].kind == DTYPES[first.dtype].kind
        if _alike(one.shape, first.shape) and same_kind:
            return True
        pairs = list(zip(one.shape, first.shape, strict=False))
        movable = same_kind and len(one.shape) == len(first.shape) and not DTYPES[one.dtype].is_packed
        if policy == "slice" and movable and all(h >= w for h, w in pairs):
            return True
        if policy == "overlap" and movable and all(h and w for h, w in pairs):
            return True
        if policy != "skip":
            shapes = f"{first.dtype} {shape_text(first.shape)} in {self._names[first.source]}, "
            self._unlike.append((key, f"{shapes}{one.dtype} {shape_text(one.shape)} in {self._names[one.source]}"))
        return False

    def check(self) -> None:
        """Raise PlanError if any tensor does not fit; the error lists all of them."""
        if self._unlike:
            hint = "Use --on-mismatch skip to merge without tensors that differ, slice to use the first part of larger "
            raise PlanError(
                f"tensors differ between the models: {grouped(self._unlike, '{names} {are} {why}')}.",
                hint=f"{hint}ones, overlap to merge the part that all have, or --vocab to map rows by token lists.",
                details=[f"{key} is {why}" for key, why in self._unlike],
            )
        if self.axes is not None:
            self.axes.check()
