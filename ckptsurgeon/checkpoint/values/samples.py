"""Describes the samples of values that notes are about."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...tensors.info import TensorInfo

__all__ = ["NORM", "VALUES", "MatrixSample", "Read", "SmallSample", "first_and_last_rows"]

VALUES = 512
"""How many values of a matrix are read."""

NORM = re.compile(r"(?:norm|ln|LayerNorm)[\w.]*[./](?:weight|gamma|scale)(?::0)?$")
"""Matches the ends of the keys of the weights of norms; torchtune, Flax and Keras name them scale or gamma."""

Read = Callable[[TensorInfo], bytes]
"""A function that returns the bytes of a tensor, or of a part of it."""


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


class MatrixSample(NamedTuple):
    """The bytes of ``VALUES`` values in the middle of a matrix."""

    key: str
    dtype: str
    raw: bytes

    def numbers(self) -> tuple[float, ...]:
        """Return the values, which are bfloat16, float16 or float32, as Python's floats."""
        raw, code = self.raw, "e" if self.dtype == "float16" else "f"
        if self.dtype == "bfloat16":
            raw = struct.pack(f"<{VALUES}I", *(one << 16 for one in struct.unpack(f"<{VALUES}H", raw)))
        return struct.unpack(f"<{VALUES}{code}", raw)


@dataclass(frozen=True)
class SmallSample:
    """The bytes of some small tensors of floats, by key, and the number of all small tensors (``of``)."""

    raw: Mapping[str, bytes]
    of: int
