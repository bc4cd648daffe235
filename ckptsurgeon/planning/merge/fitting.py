"""How tensors of one name in several models are made to fit where shapes differ, or models lack some."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ...errors import PlanError
from ...tensors.dtypes import DTYPES
from ...util.text import count, escape, grouped, listing, shape_text
from ..mismatch.policies import is_reshape
from ..plan.step import Input
from ..transplant.by_place import ByPlace, Change
from ..transplant.select import SourceView
from .options import MergeOptions, Piece, Place
from .vocabulary import MergeAxes

__all__ = ["Fitted", "Fitting", "Missing", "input_of"]

# What some models of a merge lack, where nothing says what becomes of it. Pure.

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")
"""What ``--unwrap`` strips from keys."""

UNWRAP = "Say --unwrap: the keys differ by what training wrapped around them."
ALIKE = "Merge models of one kind, or say --on-missing base, skip or any."


class Missing:
    """Keeps what is missing until all of it is known."""

    def __init__(self, views: Sequence[SourceView]) -> None:
        self._views = views
        self._keys: dict[int, list[str]] = {}

    def add(self, place: Place, key: str) -> None:
        """Keep that a model lacks a tensor, which the output has under ``key``."""
        self._keys.setdefault(place.source, []).append(key)

    def check(self) -> None:
        """Raise PlanError for what is missing: all of it at once."""
        if not self._keys:
            return
        (first, keys), *others = self._keys.items()
        said = [f"{self._name(first)} lacks {listing(keys)}"]
        said += [f"{self._name(source)} lacks {count(len(k), 'tensor')}" for source, k in others]
        raise PlanError(
            f"{'; '.join(said)}.",
            hint=UNWRAP if self._are_wrapped() else ALIKE,
            details=[f"{self._views[source].source.name}: {key}" for source, k in self._keys.items() for key in k],
        )

    def _name(self, source: int) -> str:
        return escape(self._views[source].source.name)

    def _are_wrapped(self) -> bool:
        """Whether the models have all that they lack under keys that are wrapped otherwise."""
        bare = {source: {_WRAPPERS.sub("", key) for key in self._views[source].tensors} for source in self._keys}
        return all(_WRAPPERS.sub("", key) in bare[source] for source, keys in self._keys.items() for key in keys)


Shape = tuple[int, ...]


class Fitted(NamedTuple):
    """The models that are merged, by number, the output's shape, and the policy that makes their shapes fit it.

    ``axis`` is where the vocabularies run along, with the policy ``vocab``.
    """

    inputs: Mapping[int, Input]
    base: Input | None
    shape: Shape
    policy: str = ""
    axis: int = 0


def input_of(views: Sequence[SourceView], place: Place) -> Input:
    """Return a tensor that a source has as the input of a step."""
    info = views[place.source].tensors[place.key]
    return Input(place.source, place.key, info.dtype, info.shape)


def _alike(one: Shape, other: Shape) -> bool:
    """Whether two shapes fit each other as they are."""
    return one == other or is_reshape(one, other)


class Fitting:
    """Makes one tensor after the other fit, and keeps what does not until all are known."""

    def __init__(self, views: Sequence[SourceView], options: MergeOptions, keys: Sequence[str]) -> None:
        self._views = views
        self._names = [view.source.name for view in views]
        self._policies, self._overlooked = options.mismatch.by_key(keys)
        self._everywhere = options.mismatch.everywhere
        self.axes = MergeAxes(options.vocabulary, self._names, keys) if options.vocabulary is not None else None
        self._rows = options.vocabulary.size if options.vocabulary is not None else 0
        self._unlike: list[tuple[str, str]] = []
        self._moved: list[Change] = []

    def fitted(self, piece: Piece, there: Mapping[int, Place], base: Place | None) -> Fitted:
        """Return the inputs of a tensor that can be merged; those that cannot are kept for ``check``."""
        inputs = {number: input_of(self._views, place) for number, place in there.items()}
        own = input_of(self._views, base) if base is not None else None
        first = own or next(iter(inputs.values()))
        every = [*inputs.values(), *([own] if own is not None else [])]
        kinds = {DTYPES[one.dtype].kind for one in every}
        if self.axes is not None and kinds == {"float"}:
            axis = self.axes.axis(piece.key, every)
            if axis is not None:
                shape = (*first.shape[:axis], self._rows, *first.shape[axis + 1 :])
                return Fitted(inputs, own, shape, "vocab", axis)
        policy = self._policies.get(piece.key, self._everywhere)
        fitting = {number: one for number, one in inputs.items() if self._fits(piece.key, first, one, policy)}
        moves = policy in ("slice", "overlap") and any(not _alike(one.shape, first.shape) for one in fitting.values())
        if moves:
            self._moved += (Change((piece.key,), one.shape, first.shape) for one in fitting.values())
        return Fitted(fitting, own, first.shape, policy if moves else "")

    def notes(self) -> Iterator[str]:
        """Yield what is to be said of vocabularies, those that go by token lists and those that do not."""
        yield from self._overlooked
        if self.axes is not None:
            yield from self.axes.notes()
        yield from ByPlace((one for one in self._moved if one.have != one.want), {}).merged()

    def _fits(self, key: str, first: Input, one: Input, policy: str) -> bool:
        """Whether a model is merged; where it cannot be and nothing says what to do, that is kept."""
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
            said = f"{first.dtype} {shape_text(first.shape)} in {self._names[first.source]}, "
            self._unlike.append((key, f"{said}{one.dtype} {shape_text(one.shape)} in {self._names[one.source]}"))
        return False

    def check(self) -> None:
        """Raise PlanError for what does not fit: all of it at once."""
        if self._unlike:
            hint = "--on-mismatch skip merges without those that differ, slice takes the leading part of larger ones, "
            raise PlanError(
                f"{grouped(self._unlike, '{names} {are} {why}')}.",
                hint=f"{hint}overlap merges what all have; --vocab goes by token lists.",
                details=[f"{key} is {why}" for key, why in self._unlike],
            )
        if self.axes is not None:
            self.axes.check()
