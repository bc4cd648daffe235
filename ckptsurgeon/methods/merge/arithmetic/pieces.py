"""Cuts slices into pieces of the size of a processor's cache, with which numpy is two to three times faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ....tensors.ops.regions import Array
from .._method import Merging, Slice, Tensors

__all__ = ["PIECE", "in_pieces", "like", "on_host", "pieces", "row_length"]

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
    """Return the number of elements of a row: the size of the last dimension."""
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
