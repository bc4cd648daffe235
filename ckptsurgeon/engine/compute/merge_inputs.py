"""Provides the inputs of a merge to its method: slices of all models, which are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import TypeVar

import numpy as np

from ...errors import PlanError
from ...methods.merge._method import Method, Slice
from ...planning.plan.compute import FISHER, OF_ROWS, TURNED_GRAM, Merge
from ...planning.plan.rows import VocabularyRows
from ...planning.plan.step import Step
from ...tensors.ops.casts import CastLosses, cast, raw_dtype
from ...tensors.ops.regions import Array, Box, blocks, box_shape
from ...util.text import escape
from ..context import MergeContext
from .aligning import MissingRowFiller, inner_blocks, overlap_of
from .array_backends import library
from .random_numbers import random_numbers
from .reading import OutputBlock, Part, Seen, cast_for, numbered_blocks, read_as, read_part
from .rows import gathered

__all__ = [
    "MergedTensors",
    "device_of",
    "factorising_bytes",
    "merge_of",
    "merging_bytes",
    "merging_places",
    "method_of",
    "whole_bytes",
]

T = TypeVar("T")

ELEMENTS = 1 << 17
"""How many elements a slice has: slices of several models, and intermediate results, must fit in a core's cache."""

SMALL = 1 << 16
"""A tensor with at most this many elements stays in memory, and is not read again in each pass of the method."""

DEVICE_ELEMENTS = 1 << 22
"""How many elements a slice has if it is copied to a device, such as a GPU, and back."""

MANY = 8
"""With more models than this, slices have fewer elements than ``ELEMENTS`` or ``DEVICE_ELEMENTS``."""

TEMPORARIES = 3
"""For each input, a merge method has at most this many temporary arrays of a slice's size in memory."""

WHOLE = 4 * 8
"""The bytes of each element of a matrix that is merged as a whole: four matrices in double precision."""


def merging_places(step: Step, context: MergeContext) -> list[OutputBlock]:
    """Return the blocks of a merged tensor; they are the same on every machine, so that the results are the same."""
    by_rows = method_of(step, context).wants_rows(step.shape, merge_of(step).parameters)
    most = DEVICE_ELEMENTS if device_of(step, context) else ELEMENTS
    most = max(1, most // -(-_count(step) // MANY))
    limit = max(most, step.shape[-1] if by_rows else 1)
    return list(_places(step.shape, limit, raw_dtype(step.dtype).itemsize))


@lru_cache(maxsize=16)
def _places(shape: tuple[int, ...], limit: int, itemsize: int) -> tuple[OutputBlock, ...]:
    """Return the blocks of a tensor, of about ``limit`` elements each; cached, since many tensors share a shape."""
    return tuple(numbered_blocks(blocks(shape, limit), itemsize))


def _count(step: Step) -> int:
    """Return the number of arrays in a slice: the models, the base and, for some methods, the statistics.

    Statistics are in a slice only if they have one value for each element, as Fisher information has.
    """
    return len(step.combined if merge_of(step).statistics != FISHER else step.inputs)


def merging_bytes(step: Step, places: Sequence[OutputBlock]) -> int:
    """Return the bytes of memory for computing one block of a merge."""
    elements = max((prod(box_shape(place.box)) for place in places), default=0)
    return elements * np.dtype(merge_of(step).compute).itemsize * _count(step) * (1 + TEMPORARIES)


def factorising_bytes(step: Step, context: MergeContext) -> int:
    """Return the bytes of memory for factorising a whole tensor, if the merge method of a step does so; else 0."""
    merge = merge_of(step)
    itemsize, shape, number = np.dtype(merge.compute).itemsize, _merged_shape(step), len(step.combined)
    if merge.statistics != TURNED_GRAM:
        return method_of(step, context).bytes_held(shape, number, itemsize, merge.parameters)
    whole = prod(shape) * (number * itemsize + WHOLE)  # its columns are merged together, and so whole matrices
    turned = (*shape[:-2], shape[-1], shape[-2])
    return whole + method_of(step, context).bytes_held(turned, number, itemsize, merge.parameters)


def whole_bytes(step: Step, context: MergeContext) -> int:
    """Return the bytes of memory for a tensor that the merge method of a step reads as a whole; 0 if it reads slices.

    Factorising takes more memory: see ``factorising_bytes``.
    """
    merge, shape = merge_of(step), _merged_shape(step)
    if not method_of(step, context).is_read_whole(shape, merge.parameters):
        return 0
    return _whole_bytes(shape, merge, len(step.combined))


def _merged_shape(step: Step) -> tuple[int, ...]:
    """Return the shape of the merged values: the output's or, with the policy ``overlap``, that of the overlap."""
    return step.shape if step.policy != "overlap" else overlap_of(step)


def _whole_bytes(shape: tuple[int, ...], merge: Merge, inputs: int) -> int:
    return prod(shape) * np.dtype(merge.compute).itemsize * inputs * TEMPORARIES


def merge_of(step: Step) -> Merge:
    """Return the settings of a step's merge (method, parameters); only for steps that ``check_step`` has checked."""
    assert step.merge is not None
    return step.merge


def method_of(step: Step, context: MergeContext) -> Method:
    """Return the merge method of a step, after a check that the plan has exactly the parameters of this method.

    Raises ConfigError for an unknown method, PlanError if the parameters differ, for example because a user has edited
    the plan. Without this check, the method would silently use the default of a missing parameter.
    """
    merge = merge_of(step)
    method = context.method(merge.method)
    name, takes = escape(merge.method), [one.name for one in method.parameters]
    if unknown := [one for one in merge.parameters if one not in takes]:
        raise PlanError(
            f"the plan sets the parameter {escape(unknown[0])}, which the merge method {name} does not have.",
            hint="Make a new plan.",
        )
    if lacking := [one for one in takes if one not in merge.parameters]:
        raise PlanError(
            f"the plan lacks the parameter {lacking[0]} of the merge method {name} for {escape(step.key)}.",
            hint="Make a new plan.",
        )
    return method


def device_of(step: Step, context: MergeContext) -> str:
    """Return the device on which torch computes the merge of a step; "" if numpy computes it."""
    return merge_of(step).device if context.device is None else context.device


class MergedTensors:
    """The tensors that are merged: a merge method gets this object, and reads the inputs from it slice by slice."""

    def __init__(self, step: Step, parts: Sequence[Part], context: MergeContext) -> None:
        merge = merge_of(step)
        self.key, self.shape = step.key, _merged_shape(step)
        models = len(step.combined)
        self.count, self.has_base = models - merge.base, merge.base
        self.is_transposed = merge.statistics in OF_ROWS.values()
        self._sliced = parts[models:] if merge.statistics == FISHER else []
        self._statistics, parts = parts[models:], parts[:models]
        self.library = library(device_of(step, context))
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
        size = factorising_bytes(self._step, self._context)
        size = size or _whole_bytes(self.shape, merge_of(self._step), len(self._parts))
        why = "the method needs a whole tensor at once"
        self._context.check(self._step, size, why, ", or use another merge method for this tensor")
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
