"""Samples of the tensors of a merge: whole rows at equal distances, so that memory and time are bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import TypeVar

import numpy as np

from ...analysis.compare.measure_changes import StoredTensor
from ...analysis.compare.tensor_difference import values_of
from ...engine.compute.column_bands import banded
from ...engine.compute.random_numbers import random_numbers
from ...methods.merge._slices import Slice
from ...tensors.ops.regions import Array, Box

__all__ = ["SampledTensors", "read_sample", "sample_boxes"]

T = TypeVar("T")

RUNS = 8
"""A sample has this many runs of rows, at equal distances from each other."""


def sample_boxes(shape: Sequence[int], most: int) -> tuple[list[Box], tuple[int, ...]]:
    """Return the parts of a tensor that make up a sample of at most ``most`` values, and the shape of the sample.

    The sample has whole rows (all of the last dimensions) if a row has at most ``most`` values, else parts of rows.
    """
    if prod(shape) <= most:
        return [tuple((0, size) for size in shape)], tuple(shape)
    axis = next(at for at in range(len(shape)) if prod(shape[at + 1 :]) <= most)
    inner = shape[axis + 1 :]
    wanted = max(1, most // max(1, prod(inner)))
    boxes = list(_runs(shape, axis, wanted))
    rows = sum(box[axis][1] - box[axis][0] for box in boxes)
    return boxes, (rows, *inner)


def _runs(shape: Sequence[int], axis: int, wanted: int) -> Iterator[Box]:
    """Yield boxes of consecutive rows along ``axis``, ``wanted`` rows in total, at equal distances in the tensor."""
    number = min(RUNS, wanted)
    length, every = wanted // number, prod(shape[: axis + 1])
    for at in range(number):
        first = at * every // number
        outer = [int(one) for one in np.unravel_index(first, tuple(shape[: axis + 1]))]
        end = min(outer[-1] + length, shape[axis])
        yield (
            *((one, one + 1) for one in outer[:-1]),
            (outer[-1], end),
            *((0, size) for size in shape[axis + 1 :]),
        )


def read_sample(one: StoredTensor, boxes: Sequence[Box]) -> Array:
    """Return the values of a tensor in ``boxes`` as one flat array of float32."""
    info = one.info
    source = banded(info, one.checkpoint)
    return np.concatenate([values_of(source, info, box).astype("<f4") for box in boxes])


@dataclass
class SampledTensors:
    """The sampled values of all models and the base under one name, in the form in which merge methods read tensors."""

    key: str
    shape: tuple[int, ...]
    models: tuple[Array, ...]
    base: Array | None
    seed: int

    def __post_init__(self) -> None:
        self.count, self.has_base = len(self.models), self.base is not None
        self.xp: ModuleType = np
        self.is_transposed = False

    def whole(self) -> Slice:
        """Return all values as one slice; they are copies, since methods may compute in place."""
        models = tuple(one.reshape(self.shape).copy() for one in self.models)
        return Slice(models, None if self.base is None else self.base.reshape(self.shape).copy(), 0, 0, self.xp)

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Call ``look`` with the only slice, which has all values; return a list that contains only its result."""
        return [look(self.whole())]

    def gram(self, model: int, expert: int = 0) -> Array:
        """Raise NotImplementedError: methods that need statistics are not tried on samples."""
        raise NotImplementedError

    def magnitudes(self) -> Array:
        """Raise NotImplementedError: methods that need statistics are not tried on samples."""
        raise NotImplementedError

    def uniform(self, at: Slice, model: int) -> Array:
        """Return random numbers in [0, 1), which depend on the seed, the key, the model and the position."""
        return random_numbers(self.seed, self.key, model, at.offset, tuple(at.models[0].shape))
