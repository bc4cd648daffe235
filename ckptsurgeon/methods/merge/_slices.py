"""The tensors that a merge method gets, slice by slice; slices are cut into pieces of the size of a processor's cache.

With such pieces, numpy is two to three times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from ...tensors.ops.regions import Array
from ...util.short_repr import Brief

__all__ = [
    "PIECE",
    "Merging",
    "ShapesOnly",
    "Slice",
    "Tensors",
    "ValuesNeededError",
    "in_pieces",
    "like",
    "on_host",
    "pieces",
    "row_length",
]

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Slice(Brief):
    """A part of the tensors to merge: the same contiguous range of elements of each model's tensor.

    ``models`` and ``base`` have the same shape. They are float32, or float64 if that is the dtype of computation.
    ``offset`` is the number of elements before the slice (row-major), ``index`` is the number of slices before it.
    ``xp`` is the array library, numpy or, on a device, torch, with the functions of
    https://data-apis.org/array-api/2024.12/. ``statistics`` has the Fisher information of each model's elements, if the
    method uses it.
    """

    models: tuple[Array, ...]
    base: Array | None
    offset: int
    index: int
    xp: ModuleType
    statistics: tuple[Array, ...] = ()

    @property
    def deltas(self) -> tuple[Array, ...]:
        """The values of each model minus the values of the base; the models themselves if there is no base."""
        return tuple(self.delta(model) for model in range(len(self.models)))

    def delta(self, model: int) -> Array:
        """Return the values of the model with the index ``model`` minus the base, or its own values without a base."""
        return self.models[model] if self.base is None else self.models[model] - self.base

    def wide(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Return the arrays in double precision."""
        return tuple(self.xp.asarray(one, dtype=self.xp.float64) for one in arrays)

    def onto(self, delta: Array) -> Array:
        """Return the base plus ``delta``, computed in the memory of ``delta``; ``delta`` itself if there is no base."""
        if self.base is not None:
            delta += self.base
        return delta


class Tensors(Protocol):
    """The tensors that all models have under one name, with the same shape; they are read slice by slice."""

    key: str
    shape: tuple[int, ...]
    count: int
    """The number of models, without the base."""
    has_base: bool
    xp: ModuleType
    """The array library, numpy or torch."""
    is_transposed: bool
    """Whether the rows of the tensors, not the columns, belong to a layer's inputs; False without statistics."""

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Return the result of ``look`` for each slice of the tensors, in order; all values are read once for this.

        Several slices are processed at once. The slices are the same in every pass, and in the merge itself.
        """
        ...

    def whole(self) -> Slice:
        """Return the whole tensors as one slice; raises PlanError if they need more memory than is allowed."""
        ...

    def gram(self, model: int, expert: int = 0) -> Array:
        """Return the Gram matrix of the inputs of a model's layer, divided by their number, in double precision.

        If the tensor stacks the weights of experts, it is the matrix of the inputs of one of them.
        """
        ...

    def magnitudes(self) -> Array:
        """Return the mean magnitude of each input of the base's layer, in double precision."""
        ...

    def uniform(self, at: Slice, model: int) -> Array:
        """Return random numbers in [0, 1), in the shape of ``at``, which is a slice or a part of a slice.

        Each number depends only on the seed, the key, the model and the position of the element in the tensor.
        """
        ...


class ValuesNeededError(Exception):
    """Raised when a merge method asks for values while only its parameters are checked."""


@dataclass(frozen=True)
class ShapesOnly:
    """Tensors with a shape but without values: with them, a method's parameters are checked before anything is read."""

    shape: tuple[int, ...]
    count: int
    has_base: bool
    key: str = ""
    is_transposed: bool = False
    xp: Any = None

    def map(self, look: Callable[[Slice], Any]) -> list[Any]:
        raise ValuesNeededError

    def whole(self) -> Slice:
        raise ValuesNeededError

    def gram(self, model: int, expert: int = 0) -> Array:
        raise ValuesNeededError

    def magnitudes(self) -> Array:
        raise ValuesNeededError

    def uniform(self, at: Slice, model: int) -> Array:
        raise ValuesNeededError


Merging: TypeAlias = Callable[[Slice], Array]
"""A function that returns the merged values of a slice, in the slice's shape."""


# Pieces of slices.

PIECE = 1 << 16
"""The number of elements of a piece: 256 kB in float32."""


def pieces(at: Slice, size: int = PIECE, columns: int | None = None) -> Iterator[Slice]:
    """Yield the pieces of a slice: flat, or as rows of ``columns`` elements; on a device, the slice is one piece.

    The same ``size`` always gives the same pieces of a slice.
    """
    count = math.prod(at.models[0].shape)
    row = columns or 1
    step = max(size // row, 1) * row if isinstance(at.models[0], np.ndarray) else count
    shape = (-1, columns) if columns else (-1,)
    models, base = [_flat(at, model) for model in at.models], None if at.base is None else _flat(at, at.base)
    statistics = [_flat(at, one) for one in at.statistics]
    for begin in range(0, count, step or 1):
        end = begin + step
        yield Slice(
            tuple(model[begin:end].reshape(shape) for model in models),
            None if base is None else base[begin:end].reshape(shape),
            at.offset + begin,
            at.index,
            at.xp,
            tuple(one[begin:end].reshape(shape) for one in statistics),
        )


def row_length(tensors: Tensors) -> int:
    """Return the number of elements of a row: the size of the last dimension, but at least 1; 1 for a scalar."""
    return max(1, tensors.shape[-1]) if tensors.shape else 1


def on_host(array: Array) -> Array:
    """Return an array of numpy or torch as a numpy array in the memory of the CPU."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())


def like(array: Array, values: Array, at: Slice) -> Array:
    """Return the numpy array ``values`` in the dtype of ``array`` and on its device, with the library in ``at``."""
    if isinstance(array, np.ndarray):
        return values.astype(array.dtype)
    moved: Array = at.xp.asarray(values, dtype=array.dtype, device=array.device)
    return moved


def in_pieces(merge: Callable[[Slice], Array], columns: int | None = None) -> Merging:
    """Return a function that merges a slice by calling ``merge`` for each of its pieces.

    With ``columns`` a piece has whole rows of this length; without it pieces are flat.
    """

    def merged(at: Slice) -> Array:
        if math.prod(at.models[0].shape) <= PIECE and not columns:
            whole: Array = at.xp.asarray(merge(next(pieces(at), at)), dtype=at.models[0].dtype)
            return whole.reshape(at.models[0].shape)
        result: Array = at.xp.empty_like(at.models[0])
        flat = _flat(at, result)
        for piece in pieces(at, columns=columns):
            begin = piece.offset - at.offset
            made = merge(piece).reshape((-1,))
            flat[begin : begin + made.shape[0]] = made
        return result

    return merged


def _flat(at: Slice, array: Array) -> Array:
    flat: Array = at.xp.reshape(array, (-1,))
    return flat
