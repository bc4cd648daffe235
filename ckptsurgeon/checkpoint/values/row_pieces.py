"""Describes the first and the last rows of a stored tensor, for notes that read only a part of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ...tensors.info import TensorInfo

__all__ = ["first_and_last_rows"]


def first_and_last_rows(info: TensorInfo, most: int) -> Iterator[TensorInfo]:
    """Yield the tensor if it has at most ``most`` bytes; else its first rows and its last rows, at least one row each.

    The tensor must be plain (``TensorInfo.is_plain``). Together, the rows have about ``most`` bytes.
    """
    if info.nbytes <= most or not info.shape:
        yield info
        return
    row = info.itemsize * math.prod(info.shape[1:])
    rows = max(1, most // 2 // row)
    shape = (rows, *info.shape[1:])
    yield replace(info, shape=shape)
    yield replace(info, shape=shape, offset=info.offset + (info.shape[0] - rows) * row)
