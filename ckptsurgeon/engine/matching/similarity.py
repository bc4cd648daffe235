"""Inner products of the tensors of two models, unit by unit, in bands that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...storage.read.uri import shown
from ...tensors.info import TensorInfo
from ...tensors.ops.casts import cast
from ...tensors.ops.regions import Array, Box
from ...util.text import escape
from ..compute.reading import read_part

__all__ = ["TensorPair", "add_products", "band_bytes", "dot_products"]

ARRAYS = 12
"""How many arrays of the size of a band are in memory at once: the bands of both models as stored, cast and reordered.

If columns are reordered, up to four times as many columns are read as are needed.
"""
ROWS = 256
"""How many rows of a matrix of products are computed at once."""
LEAST = 1 << 16
"""The least number of elements in a band."""


class TensorPair:
    """Two tensors of the same shape: one of the reference, and one of the model that is aligned with the reference.

    ``key`` is the key of the model's tensor, for messages. Both tensors may be derived from stored tensors.
    """

    def __init__(self, reference: Checkpoint, first: TensorInfo, model: Checkpoint, second: TensorInfo, key: str):
        self._parts = ((reference, first), (model, second))
        self.shape, self._key = first.shape, key

    @property
    def dtype(self) -> str:
        """The dtype in which products of the two tensors are computed: float64 if one of them has it, else float32."""
        return "float64" if any(info.dtype == "float64" for _, info in self._parts) else "float32"

    def read(self, box: Box, dtype: str) -> tuple[Array, Array]:
        """Return the part ``box`` of both tensors; raises PlanError for NaN and infinite values."""
        found = []
        for source, info in self._parts:
            values = cast(read_part(source, info, box), info.dtype, dtype)[0]
            if not np.isfinite(values).all():
                raise PlanError(
                    f"{escape(self._key)} of {escape(shown(source.path))} has NaN or infinite values, so the model "
                    "cannot be aligned by its weights.",
                    hint="Find these values with ckpt check.",
                )
            found.append(values)
        return found[0], found[1]


def band_bytes() -> int:
    """Return the bytes of memory for the smallest bands, in double precision."""
    return ARRAYS * LEAST * 8


def add_products(to: Array, pair: TensorPair, dim: int, begin: int, block: int, memory: int) -> None:
    """Add to ``to`` the inner products of each unit of the first tensor (rows) with each unit of the second (columns).

    The units are along the dimension ``dim`` from ``begin`` on, each of ``block`` elements. The tensors are divided
    along other dimensions into bands, which are read one after the other, in about ``memory`` bytes each. Products that
    overflow become infinite or NaN: ``assignment`` refuses them.
    """
    units = len(to)
    whole: list[tuple[int, int]] = [(0, size) for size in pair.shape]
    whole[dim] = (begin, begin + units * block)
    for box in _bands(tuple(whole), dim, _most(memory, pair.dtype)):
        first, second = (np.moveaxis(one, dim, 0).reshape(units, -1) for one in pair.read(box, pair.dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            for row in range(0, units, ROWS):
                to[row : row + ROWS] += first[row : row + ROWS] @ second.T


def dot_products(pair: TensorPair, memory: int) -> tuple[float, float, float]:
    """Return the inner product of two tensors, and the sum of squares of each."""
    sums = np.zeros(3)
    whole = tuple((0, size) for size in pair.shape)
    for box in _bands(whole, -1, _most(memory, "float64")):
        first, second = (one.reshape(-1) for one in pair.read(box, "float64"))
        sums += first @ second, first @ first, second @ second
    product, one, other = sums.tolist()
    return product, one, other


def _most(memory: int, dtype: str) -> int:
    return max(LEAST, memory // (ARRAYS * np.dtype(dtype).itemsize))


def _bands(whole: Box, but: int, most: int) -> Iterator[Box]:
    """Yield parts of the box ``whole``, of at most ``most`` elements if possible; dimension ``but`` is not divided."""
    sizes = [end - begin for begin, end in whole]
    total = prod(sizes)
    dims = [dim for dim in range(len(sizes)) if dim != but and sizes[dim] > 1]
    if total <= most or not dims:
        yield whole
        return
    dim = max(dims, key=lambda one: sizes[one])
    begin, end = whole[dim]
    step = max(1, sizes[dim] * most // total)
    for first in range(begin, end, step):
        part = (*whole[:dim], (first, min(first + step, end)), *whole[dim + 1 :])
        yield from _bands(part, but, most) if step == 1 and len(dims) > 1 else (part,)
