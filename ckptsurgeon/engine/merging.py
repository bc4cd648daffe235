"""Merges the tensors that several models have of one name by a method, slice by slice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np

from ..errors import ConfigError, PlanError
from ..means import rounded
from ..merges import Merging, Method, Slice, merge_methods
from ..ops import Array, Box, blocks, box_shape, cast, raw_dtype
from ..plan import Merge, Rows, Step
from ..text import count, escape, human_bytes
from .aligning import common_shape, inner_places
from .casting import cast_for, named
from .factoring import Factors
from .filling import Filling
from .libraries import library
from .mapping import gathered
from .part import Blockwise, Part, Place, Seen, placed
from .reading import read_part
from .run import MEMORY

__all__ = ["MergeContext", "merging_bytes", "merging_of", "merging_places"]

T = TypeVar("T")

ELEMENTS = 1 << 17
"""Elements of a slice: of a few tensors, and what is made of them, a core's cache holds so many."""

DEVICE_ELEMENTS = 1 << 22
"""The same where they go to a device and come back."""

MANY = 8
"""Models of which a slice has so many elements; of more, it has fewer."""

TEMPORARIES = 3
"""Arrays of a slice's size that a method makes of each, at most, while it works."""


class Spread(Protocol):
    """Maps a function over many things, perhaps in several threads, and keeps their order."""

    def __call__(self, look: Callable[[Any], T], over: Iterable[Any], /) -> Iterable[T]:
        """Return the results in the order of what they are of."""
        ...


@dataclass(frozen=True)
class MergeContext:
    """What merges are carried out with beside their plan: the seed, the user's methods, the memory, the threads.

    ``memory`` is in bytes; ``device`` is where torch computes, "" for numpy, None for what the plan says; ``factors``
    are those that were extracted last.
    """

    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = MEMORY
    spread: Spread = map
    factors: Factors = field(default_factory=Factors)
    device: str | None = None

    def method(self, name: str) -> Method:
        """Return a method by its name; raises ConfigError for one that is not known."""
        known = merge_methods(self.plugins)
        if name not in known:
            raise ConfigError(
                f"the merge method {escape(name)} is not known.", hint="Name the file that has it with --plugin."
            )
        return known[name]


def merging_places(step: Step, context: MergeContext) -> list[Place]:
    """Return the blocks in which a merged tensor is computed: the same on every machine, with whatever memory."""
    method = context.method(_merge(step).method)
    most = DEVICE_ELEMENTS if _device(step, context) else ELEMENTS
    most = max(1, most // -(-len(step.inputs) // MANY))
    limit = max(most, step.shape[-1] if method.by_rows and step.shape else 1)
    return list(placed(blocks(step.shape, limit), raw_dtype(step.dtype).itemsize))


def merging_bytes(step: Step, places: Sequence[Place]) -> int:
    """Return the bytes that it takes to compute one block of a merge."""
    elements = max((prod(box_shape(place.box)) for place in places), default=0)
    return elements * np.dtype(_merge(step).compute).itemsize * len(step.inputs) * (1 + TEMPORARIES)


def merging_of(step: Step, parts: Sequence[Part], context: MergeContext) -> Blockwise:
    """Look at the inputs as far as a method needs, and return what merges their blocks.

    Raises PlanError where the tensors cannot be merged so, or not in the memory there is.
    """
    merge = _merge(step)
    method = context.method(merge.method)
    _check_inputs(merge, method, len(parts) - merge.base)
    tensors = _Tensors(step, parts, context)
    argument = {one.name: one.argument for one in method.parameters}
    if unknown := [name for name in merge.parameters if name not in argument]:
        raise PlanError(f"the merge method {escape(merge.method)} takes no {escape(unknown[0])}.", hint="Plan again.")
    with tensors.library.working():
        merging = method.prepare(tensors, {argument[name]: value for name, value in merge.parameters.items()})

    def block(place: Place, seen: Seen | None) -> tuple[Array, int]:
        inner = tensors.inner[place.index]
        if inner is None:
            return tensors.kept(place.box)
        values, lost = _finished(step, merge, merging, tensors, inner, seen)
        if inner.box == place.box:
            return values, lost
        whole, more = tensors.kept(place.box)
        whole[tuple(slice(0, size) for size in values.shape)] = values
        return whole, lost + more

    return block


def _check_inputs(merge: Merge, method: Method, number: int) -> None:
    """Raise PlanError where a plan, which may have been edited, gives a method what it does not merge."""
    least, most = method.models
    needs, takes = method.base == "required", method.base in ("required", "optional")
    if (
        (needs and not merge.base)
        or (merge.base and not takes)
        or number < least
        or (most is not None and number > most)
    ):
        with_base = " and a base" if merge.base else ""
        raise PlanError(
            f"{escape(merge.method)} does not merge {count(number, 'model')}{with_base}.", hint="Plan again."
        )


def _finished(
    step: Step, merge: Merge, merging: Merging, tensors: _Tensors, inner: Place, seen: Seen | None
) -> tuple[Array, int]:
    with tensors.library.working():
        at = tensors.slice(inner, seen)
        values = tensors.library.get(merging(at))
    wanted = box_shape(inner.box)
    if values.shape != wanted:
        raise PlanError(f"the merge method {escape(merge.method)} gives {values.shape} for a slice of {wanted}.")
    lost = _overflown(values, tensors, inner) if not np.isfinite(values).all() else 0
    made, more = _rounded(step, merge, values)
    return made, lost + more


def _overflown(values: Array, tensors: _Tensors, inner: Place) -> int:
    """Return how many values are infinite or NaN that are finite in all inputs, which are read again: it is seldom."""
    at = tensors.slice(inner)
    inputs = [tensors.library.get(one) for one in (*at.models, *([at.base] if at.base is not None else []))]
    finite = np.logical_and.reduce([np.isfinite(one) for one in inputs])
    return int(np.count_nonzero(~np.isfinite(values) & finite))


def _rounded(step: Step, merge: Merge, values: Array) -> tuple[Array, int]:
    if merge.compute == "float64" or step.dtype == "float8_e8m0fnu":  # which has no sign: below zero is an error
        return named(step, rounded, values.astype("<f8", copy=False), "float64")
    return cast_for(step, values.astype("<f4", copy=False), "float32")


def _merge(step: Step) -> Merge:
    assert step.merge is not None  # by check_step
    return step.merge


def _device(step: Step, context: MergeContext) -> str:
    return _merge(step).device if context.device is None else context.device


class _Tensors:
    """The inputs of a step, as a method sees them."""

    def __init__(self, step: Step, parts: Sequence[Part], context: MergeContext) -> None:
        merge = _merge(step)
        self.key, self.shape = step.key, common_shape(step)
        self.count, self.has_base = len(parts) - merge.base, merge.base
        self.library = library(_device(step, context))
        places = merging_places(step, context)
        self.inner = inner_places(places, self.shape)
        self._step, self._parts, self._context, self._compute = step, parts, context, merge.compute
        self._check(merging_bytes(step, places), "a slice of all models")
        self._fill = Filling(step, self._rows) if step.policy == "vocab" else None

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Return what ``look`` gives for each slice, in order."""

        def one(place: Place) -> T:
            with self.library.working():
                return look(self.slice(place))

        return list(self._context.spread(one, [place for place in self.inner if place is not None]))

    def whole(self) -> Slice:
        """Return everything in one slice."""
        size = np.dtype(self._compute).itemsize * len(self._parts) * TEMPORARIES
        self._check(prod(self.shape) * size, "a whole tensor")
        return self.slice(Place(0, 0, tuple((0, size) for size in self.shape)))

    def _check(self, needed: int, what: str) -> None:
        """Raise PlanError where something takes more bytes than the memory holds."""
        if needed > self._context.memory:
            raise PlanError(
                f"{escape(self.key)} takes {human_bytes(needed)} of memory, since the method needs {what} at once; "
                f"it has {human_bytes(self._context.memory)}.",
                hint="Allow more with --memory, or use another method for it.",
            )

    def slice(self, place: Place, seen: Seen | None = None) -> Slice:
        """Return the part of all inputs that a block is merged from; places and offsets are of what is merged."""
        values = [self._read(number, place.box, seen) for number in range(len(self._parts))]
        if self._fill is not None:
            values = self._fill(values, place.box)
        values = [self.library.put(one) for one in values]
        base = values.pop() if self.has_base else None
        return Slice(tuple(values), base, place.offset, place.index, self.library.xp)

    def _read(self, number: int, box: Box, seen: Seen | None) -> Array:
        info, source = self._parts[number]
        if self._fill is not None:
            return self._rows(number, self._step.vocabularies[number], box)
        values = read_part(source, info, box)
        if seen is not None:
            seen(number, values)
        return self._widened(values, info.dtype, box)

    def _rows(self, number: int, rows: Rows, box: Box) -> Array:
        info, source = self._parts[number]
        return self._widened(gathered(rows, self._step.axis, info, source, box), info.dtype, box)

    def _widened(self, values: Array, dtype: str, box: Box) -> Array:
        return cast(values, dtype, self._compute)[0].reshape(box_shape(box))

    def kept(self, box: Box) -> tuple[Array, int]:
        """Return a part of the output that is not merged: the base's, or the first model's."""
        info, source = self._parts[-1 if self.has_base else 0]
        values, lost = cast_for(self._step, read_part(source, info, box), info.dtype)
        return np.array(values).reshape(box_shape(box)), lost

    def uniform(self, at: Slice, model: int) -> Array:
        """Return a random number in [0, 1) for each element of a slice, by Philox, which counts.

        https://doi.org/10.1145/2063384.2063405: any place of the sequence is reached at once, so that slices may come
        in any order and size.
        """
        seed = f"{self._context.seed}\0{model}\0{self.key}".encode("utf-8", "surrogatepass")
        key = int.from_bytes(hashlib.blake2b(seed, digest_size=16).digest(), "little")
        size, (first, skipped) = prod(at.models[0].shape), divmod(at.offset, WORDS)
        raw = np.random.Philox(key=key, counter=first).random_raw((skipped + size + WORDS - 1) // WORDS * (WORDS // 2))
        words = raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + size]
        drawn = ((words >> 8) * np.float32(2**-24)).reshape(tuple(at.models[0].shape))
        return self.library.put(drawn)


WORDS = 8
"""Numbers of 32 bits that Philox gives for a count."""
