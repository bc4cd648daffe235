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
from ..plan import Merge, Step
from ..text import escape, human_bytes
from .casting import cast_for
from .factoring import Factors
from .part import Blockwise, Part, Place, Seen, placed
from .reading import read_part
from .run import MEMORY

__all__ = ["MergeContext", "merging_of", "merging_places"]

T = TypeVar("T")

ELEMENTS = 1 << 17
"""Elements of a slice: of a few tensors, and what is made of them, a core's cache holds so many."""

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

    ``memory`` is in bytes; ``factors`` are those that were extracted last.
    """

    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = MEMORY
    spread: Spread = map
    factors: Factors = field(default_factory=Factors)

    def method(self, name: str) -> Method:
        """Return a method by its name; raises ConfigError for one that is not known."""
        known = merge_methods(self.plugins)
        if name not in known:
            raise ConfigError(
                f"the merge method {escape(name)} is not known.", hint="Name the file that has it with --plugin."
            )
        return known[name]


def merging_places(step: Step, context: MergeContext) -> list[Place]:
    """Return the blocks in which a merged tensor is computed."""
    method = context.method(_merge(step).method)
    limit = max(ELEMENTS, step.shape[-1] if method.by_rows and step.shape else 1)
    return list(placed(blocks(step.shape, limit), raw_dtype(step.dtype).itemsize))


def merging_of(step: Step, parts: Sequence[Part], context: MergeContext) -> Blockwise:
    """Look at the inputs as far as a method needs, and return what merges their blocks.

    Raises PlanError where the tensors cannot be merged so, or not in the memory there is.
    """
    merge = _merge(step)
    method = context.method(merge.method)
    tensors = _Tensors(step, parts, context)
    if method.by_rows:
        tensors.check_memory(step.shape[-1] if step.shape else 1, "a row")
    argument = {one.name: one.argument for one in method.parameters}
    if unknown := [name for name in merge.parameters if name not in argument]:
        raise PlanError(f"the merge method {escape(merge.method)} takes no {escape(unknown[0])}.", hint="Plan again.")
    with np.errstate(all="ignore"):
        merging = method.prepare(tensors, {argument[name]: value for name, value in merge.parameters.items()})

    def block(place: Place, seen: Seen | None) -> tuple[Array, int]:
        return _finished(step, merge, merging, tensors.slice(place, seen))

    return block


def _finished(step: Step, merge: Merge, merging: Merging, at: Slice) -> tuple[Array, int]:
    with np.errstate(all="ignore"):
        values = np.asarray(merging(at))
    wanted = at.models[0]
    if values.shape != wanted.shape:
        raise PlanError(f"the merge method {escape(merge.method)} gives {values.shape} for a slice of {wanted.shape}.")
    if merge.compute == "float64":
        return rounded(values.astype("<f8", copy=False), "float64", step.dtype)
    return cast_for(step, values.astype("<f4", copy=False), "float32")


def _merge(step: Step) -> Merge:
    assert step.merge is not None  # by check_step
    return step.merge


class _Tensors:
    """The inputs of a step, as a method sees them."""

    def __init__(self, step: Step, parts: Sequence[Part], context: MergeContext) -> None:
        merge = _merge(step)
        self.key, self.shape = step.key, step.shape
        self.count, self.has_base = len(parts) - merge.base, merge.base
        self._parts, self._context, self._compute = parts, context, merge.compute
        self._places = merging_places(step, context)
        self._itemsize = raw_dtype(step.dtype).itemsize

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Return what ``look`` gives for each slice, in order."""

        def one(place: Place) -> T:
            with np.errstate(all="ignore"):
                return look(self.slice(place))

        return list(self._context.spread(one, self._places))

    def whole(self) -> Slice:
        """Return everything in one slice."""
        self.check_memory(prod(self.shape), "a whole tensor")
        return self.slice(Place(0, 0, tuple((0, size) for size in self.shape)))

    def check_memory(self, elements: int, what: str) -> None:
        """Raise PlanError where ``elements`` of each input are more than the memory holds."""
        needed = elements * np.dtype(self._compute).itemsize * len(self._parts) * TEMPORARIES
        if needed > self._context.memory:
            raise PlanError(
                f"{escape(self.key)} takes {human_bytes(needed)} of memory, since the method needs {what} at once; "
                f"it has {human_bytes(self._context.memory)}.",
                hint="Allow more with --memory, or use another method for it.",
            )

    def slice(self, place: Place, seen: Seen | None = None) -> Slice:
        """Return the part of all inputs that a block is merged from."""
        values = [self._read(number, place.box, seen) for number in range(len(self._parts))]
        base = values.pop() if self.has_base else None
        return Slice(tuple(values), base, place.offset // self._itemsize, place.index, np)

    def _read(self, number: int, box: Box, seen: Seen | None) -> Array:
        info, source = self._parts[number]
        values = read_part(source, info, box)
        if seen is not None:
            seen(number, values)
        return cast(values, info.dtype, self._compute)[0].reshape(box_shape(box))

    def uniform(self, at: Slice, model: int) -> Array:
        """Return a random number in [0, 1) for each element of a slice, by Philox, which counts.

        https://doi.org/10.1145/2063384.2063405: any place of the sequence is reached at once, so that slices may come
        in any order and size.
        """
        seed = f"{self._context.seed}\0{model}\0{self.key}".encode("utf-8", "surrogatepass")
        key = int.from_bytes(hashlib.blake2b(seed, digest_size=16).digest(), "little")
        size, (first, skipped) = at.models[0].size, divmod(at.offset, WORDS)
        raw = np.random.Philox(key=key, counter=first).random_raw((skipped + size + WORDS - 1) // WORDS * (WORDS // 2))
        words = raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + size]
        return ((words >> 8) * np.float32(2**-24)).reshape(at.models[0].shape)


WORDS = 8
"""Numbers of 32 bits that Philox gives for a count."""
