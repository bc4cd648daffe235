"""Merges the tensors with the same key of several models by a merge method, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from ...errors import PlanError
from ...methods.merge._method import Method
from ...methods.merge._slices import Merging, Slice
from ...planning.plan.compute import FISHER, OF_ROWS, Merge
from ...planning.plan.rows import VocabularyRows
from ...planning.plan.step import Step
from ...tensors.ops.casts import CastLosses, cast, widened
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array, Box, box_shape
from ...util.text import count, escape
from ..apply_settings import (
    MemoryNeed,
    MergeContext,
    bytes_of_whole,
    device_of,
    factorising_bytes,
    merge_of,
    merged_shape,
    merging_places,
    method_of,
)
from .aligning import MissingRowFiller, inner_blocks
from .growth import RIDGE, Growths, largest_of
from .random_numbers import random_numbers
from .reading import Blockwise, OutputBlock, Part, Seen, cast_for, named, numbered_blocks, read_as, read_part
from .rows import gathered
from .torch_arrays import torch_arrays

__all__ = ["are_variances", "count_negative", "had_none", "merging_of"]

T = TypeVar("T")

# A merge with negative weights may make variances negative, and layers compute the square root of variances.

VARIANCE = "running_var"
"""The last part of the keys of variances in torch's batch normalisation layers."""


def are_variances(step: Step) -> bool:
    """Return whether a step merges or averages variances of batch normalisation."""
    return step.op in ("average", "merge") and step.key.rpartition(".")[2] == VARIANCE


def count_negative(values: Array, dtype: str) -> int:
    """Return the number of values below 0; ``dtype`` is real, ``values`` have the type that ``raw_dtype`` returns."""
    return int(np.count_nonzero(np.asarray(widened(values, dtype)) < 0))


def had_none(parts: Sequence[Part]) -> bool:
    """Return whether no input contains a negative value; reads all inputs completely to find this out."""
    boxes = [tuple((0, size) for size in info.shape) for info, _ in parts]
    read = ((read_part(source, info, box), info.dtype) for (info, source), box in zip(parts, boxes, strict=True))
    return not any(count_negative(values, dtype) for values, dtype in read)


# The inputs of a merge.

SMALL = 1 << 16
"""A tensor with at most this many elements stays in memory, and is not read again in each pass of the method."""


@dataclass(frozen=True)
class _ArrayLibrary:
    """numpy, or torch on a device: its functions (``xp``), and methods that move arrays to the device and back."""

    xp: ModuleType
    device: str = ""

    def put(self, values: Array) -> Array:
        """Return a numpy array as an array of the library, on its device."""
        if not self.device:
            return values
        moved: Array = self.xp.asarray(np.ascontiguousarray(values), device=self.device)
        return moved

    def get(self, values: Any) -> Array:
        """Return an array of the library as a numpy array."""
        return np.asarray(values.cpu() if self.device else values)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the ``with`` block, create new arrays on the device, and turn off numpy's floating-point warnings."""
        with np.errstate(all="ignore"):
            if not self.device:
                yield
                return
            with self.xp.device(self.device), self.xp.no_grad():
                yield


@lru_cache
def _library(device: str) -> _ArrayLibrary:
    """Return numpy if ``device`` is "", else torch on this device; raises ConfigError if there is no such device."""
    return _ArrayLibrary(torch_arrays(device), device) if device else _ArrayLibrary(np)


class MergedTensors:
    """The tensors that are merged: a merge method gets this object, and reads the inputs from it slice by slice."""

    def __init__(self, step: Step, parts: Sequence[Part], context: MergeContext) -> None:
        merge = merge_of(step)
        self.key, self.shape = step.key, merged_shape(step)
        models = len(step.combined)
        self.count, self.has_base = models - merge.base, merge.base
        self.is_transposed = merge.statistics in OF_ROWS.values()
        self._sliced = parts[models:] if merge.statistics == FISHER else []
        self._statistics, parts = parts[models:], parts[:models]
        self.library = _library(device_of(step, context))
        self.xp = self.library.xp
        places = merging_places(step, context)
        self.inner: list[OutputBlock | None] = [*numbered_blocks((one.box for one in places), 1)]
        if step.policy == "overlap":
            self.inner = inner_blocks(places, self.shape)
        self._step, self._parts, self._context, self._compute = step, parts, context, merge.compute
        self._fill = MissingRowFiller(step, self._rows) if step.policy == "vocab" else None
        small = len(places) == 1 and not step.policy and prod(self.shape) <= SMALL
        self._held: dict[int, Array] | None = {} if small else None

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Return the result of ``look`` for each slice of the tensor, in order."""

        def one(place: OutputBlock) -> T:
            with self.library.working():
                return look(self.slice(place))

        return list(self._context.spread(one, [place for place in self.inner if place is not None]))

    def whole(self) -> Slice:
        """Return the whole tensors as one slice; raises PlanError if this needs more memory than is allowed."""
        size = factorising_bytes(self._step, self._context) or bytes_of_whole(self._step)
        self._context.check(self._step, MemoryNeed(size, "the method needs a whole tensor at once"))
        return self.slice(OutputBlock(0, 0, tuple((0, size) for size in self.shape)))

    def slice(self, place: OutputBlock, seen: Seen | None = None) -> Slice:
        """Return the values of all inputs in the block ``place``.

        The indices of the block refer to the merged region (``shape``), which may be smaller than the output. ``seen``,
        if given, is called with the index of each input and the values that were read from it.
        """
        values = [self._read(number, place.box, seen) for number in range(len(self._parts))]
        if self._fill is not None:
            values = self._fill(values, place.box)
        values = [self.library.put(one) for one in values]
        base = values.pop() if self.has_base else None
        return Slice(tuple(values), base, place.offset, place.index, self.library.xp, self._statistics_in(place.box))

    def _statistics_in(self, box: Box) -> tuple[Array, ...]:
        """Return the part ``box`` of each model's statistics, if these have one value for each element; else ()."""
        read = (self._widened(read_as(source, info, box), info.dtype, box) for info, source in self._sliced)
        return tuple(map(self.library.put, read))

    def gram(self, model: int, expert: int = 0) -> Array:
        """Return the Gram matrix of the inputs of a model's layer, or of one expert's inputs, in double precision."""
        info, _ = self._statistics[model]
        box = tuple((0, size) for size in info.shape)
        if len(info.shape) == 3:
            box = ((expert, expert + 1), *box[1:])
        return self._statistic(model, box)

    def _statistic(self, number: int, box: Box) -> Array:
        info, source = self._statistics[number]
        values = cast(read_part(source, info, box), info.dtype, "float64")[0]
        return self.library.put(values.reshape(info.shape[-2:]))

    def magnitudes(self) -> Array:
        """Return the mean magnitude of each input of the base's layer, in double precision."""
        return self._statistic(0, tuple((0, size) for size in self._statistics[0][0].shape))

    def _read(self, number: int, box: Box, seen: Seen | None) -> Array:
        info, source = self._parts[number]
        if self._fill is not None:
            return self._rows(number, self._step.vocabularies[number], box)
        values = None if self._held is None else self._held.get(number)
        if values is None:
            values = read_as(source, info, box)
        if seen is not None:
            seen(number, values)
        if self._held is not None:
            self._held[number] = values
            values = values.copy()  # a method may compute in place
        return self._widened(values, info.dtype, box)

    def _rows(self, number: int, rows: VocabularyRows, box: Box) -> Array:
        info, source = self._parts[number]
        return self._widened(gathered(rows, self._step.axis, info, source, box), info.dtype, box)

    def _widened(self, values: Array, dtype: str, box: Box) -> Array:
        return cast(values, dtype, self._compute)[0].reshape(box_shape(box))

    def kept(self, box: Box) -> tuple[Array, CastLosses]:
        """Return the part ``box`` of an output whose values are not merged, and the counts of values that a cast lost.

        The values come from the base model or, if there is no base model, from the first model.
        """
        info, source = self._parts[-1 if self.has_base else 0]
        values, lost = cast_for(self._step, read_part(source, info, box), info.dtype)
        return np.array(values).reshape(box_shape(box)), lost

    def uniform(self, at: Slice, model: int) -> Array:
        """Return random numbers in [0, 1), one for each element of ``at``, a slice of a model's tensor.

        The seed, the key and ``model`` (the index of the model) determine the numbers. They come from the generator
        Philox (https://doi.org/10.1145/2063384.2063405), whose sequence can start at any position because it is
        counter-based. So the numbers do not depend on the order and size of slices.
        """
        return self.library.put(
            random_numbers(self._context.seed, self.key, model, at.offset, tuple(at.models[0].shape))
        )


# Merging.


def merging_of(step: Step, parts: Sequence[Part], context: MergeContext) -> Blockwise:
    """Prepare the merge method, which may read the inputs for this, and return a function that merges one block.

    Raises PlanError if the method cannot merge these tensors, or if there is not enough memory.
    """
    merge = merge_of(step)
    method = method_of(step, context)
    _check_inputs(merge, method, len(step.combined) - merge.base)
    tensors = MergedTensors(step, parts, context)
    argument = {one.name: one.argument for one in method.parameters}
    with tensors.library.working():
        merging = method.prepare(tensors, {argument[name]: value for name, value in merge.parameters.items()})

    def block(place: OutputBlock, seen: Seen | None) -> tuple[Array, CastLosses]:
        inner = tensors.inner[place.index]
        if inner is None:
            return tensors.kept(place.box)
        values, lost = _finished(step, merge, merging, tensors, inner, seen, context.growths)
        if inner.box == place.box:
            return values, lost
        whole, more = tensors.kept(place.box)
        whole[tuple(slice(0, size) for size in values.shape)] = values
        return whole, lost + more

    return block


def _check_inputs(merge: Merge, method: Method, number: int) -> None:
    """Raise PlanError if a plan, which a user may have edited, has inputs that its merge method does not take.

    The number of models may be wrong, a base may be missing or not allowed, or the statistics may be of another kind.
    """
    least, most = method.models
    if merge.statistics.partition(" ")[0] != method.statistics:
        raise PlanError(
            f"the plan has {merge.statistics or 'no'} statistics, but the merge method {escape(merge.method)} uses "
            f"{method.statistics or 'none'}.",
            hint="Make a new plan.",
        )
    needs, takes = method.base == "required", method.base in ("required", "optional")
    if (
        (needs and not merge.base)
        or (merge.base and not takes)
        or number < least
        or (most is not None and number > most)
    ):
        with_base = " and a base" if merge.base else " without a base"
        wanted = f"at least {least}" if most is None else f"{least}" if least == most else f"{least} to {most}"
        base = {"required": "and a base", "optional": "and perhaps a base"}.get(method.base, "and no base")
        raise PlanError(
            f"the plan merges {count(number, 'model')}{with_base}, but the merge method {escape(merge.method)} needs "
            f"{wanted} {base}.",
            hint="Make a new plan.",
        )


def _finished(
    step: Step, merge: Merge, merging: Merging, tensors: MergedTensors, inner: OutputBlock, seen: Seen | None,
    growths: Growths,
) -> tuple[Array, CastLosses]:  # fmt: skip
    is_measured = RIDGE in merge.parameters
    with tensors.library.working():
        at = tensors.slice(inner, seen)
        before = largest_of(at.models if at.base is None else (*at.models, at.base)) if is_measured else 0.0
        values = tensors.library.get(merging(at))
    wanted = box_shape(inner.box)
    if values.shape != wanted:
        raise PlanError(
            f"the merge method {escape(merge.method)} returned an array of the shape {values.shape} for inputs of the "
            f"shape {wanted}; it must return an array of the same shape."
        )
    if is_measured:
        growths.add(step.key, inner.index, before, largest_of([values]))
    lost = CastLosses(_overflown(values, tensors, inner)) if not np.isfinite(values).all() else CastLosses()
    made, more = _rounded(step, merge, values)
    return made, lost + more


def _overflown(values: Array, tensors: MergedTensors, inner: OutputBlock) -> int:
    """Return the number of values of a block that are infinite or NaN although all inputs are finite at this index.

    This reads the inputs again.
    """
    at = tensors.slice(inner)
    inputs = [tensors.library.get(one) for one in (*at.models, *([at.base] if at.base is not None else []))]
    finite = np.logical_and.reduce([np.isfinite(one) for one in inputs])
    return int(np.count_nonzero(~np.isfinite(values) & finite))


def _rounded(step: Step, merge: Merge, values: Array) -> tuple[Array, CastLosses]:
    if merge.compute == "float64" or step.dtype == "float8_e8m0fnu":  # unsigned: ``rounded`` refuses negative values
        return named(step, rounded, values.astype("<f8", copy=False), "float64")
    return cast_for(step, values.astype("<f4", copy=False), "float32")
