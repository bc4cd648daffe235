"""Fingerprints of whole tensors and of slices along a dimension; they do not depend on the order of elements."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ....checkpoint.checkpoint import Checkpoint
from ....engine.compute.column_bands import banded
from ....engine.compute.reading import read_part
from ....tensors.info import TensorInfo
from ....tensors.ops.regions import blocks
from .line_fingerprints import ELEMENTS, bits_of, mixed, numbers_of

__all__ = ["elements_of", "slices_of"]

Hashes = npt.NDArray[np.uint64]


def elements_of(source: Checkpoint, info: TensorInfo, dtype: str) -> int:
    """Return a fingerprint of a tensor after a cast to ``dtype``; it does not depend on the order of elements."""
    return int(slices_of(source, info, dtype, ())[0][0]) if info.numel else 0


def slices_of(source: Checkpoint, info: TensorInfo, dtype: str, dims: tuple[int, ...] = (0, 1)) -> list[Hashes]:
    """Return, for each of ``dims``, the fingerprints of all slices along it; without ``dims``, of the whole tensor.

    The tensor is read once, block by block.
    """
    found = [np.zeros(info.shape[dim], np.uint64) for dim in dims] or [np.zeros(1, np.uint64)]
    files = banded(info, source)
    for box in blocks(info.shape, ELEMENTS):
        bits = mixed(numbers_of(bits_of(read_part(files, info, box), info.dtype, dtype), box))
        if not dims:
            found[0] += bits.sum(dtype=np.uint64)
        for hashes, dim in zip(found, dims, strict=False):
            begin, end = box[dim]
            hashes[begin:end] += bits.sum(axis=tuple(d for d in range(bits.ndim) if d != dim), dtype=np.uint64)
    return found
