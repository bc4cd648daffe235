"""Computes the largest change that rounding to the stored dtype or codes may make to a tensor's values."""

from __future__ import annotations

import zlib
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ...tensors.composition import is_decoded, leaves
from ...tensors.dtypes import BLOCKS, DTYPES
from ...tensors.info import Shifted, TensorInfo

__all__ = ["Rounding", "codes_of", "largest_of_rows", "rounding_of", "roundoff"]

ROUNDOFF = {
    "float64": 2**-53, "float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8, "float8_e4m3fn": 2**-4,
    "float8_e4m3fnuz": 2**-4, "float8_e5m2": 2**-3, "float8_e5m2fnuz": 2**-3,
}  # fmt: skip
"""The largest relative error of rounding to a dtype: half the distance between 1 and the next larger number."""
CODES = {"int8": 2**-8}
"""The largest rounding error of integer codes, as a share of the largest weight in the row."""
BITS = {name: int(next(filter(str.isdecimal, name))) for name in BLOCKS}
"""The number of bits of a weight in each GGUF type with blocks of codes, read from its name: 4 for ``q4_0``."""
FOUR_BITS = 2**-4
"""The largest rounding error of codes of 4 bits, and of all dtypes of codes not in ``CODES`` and ``BITS``."""
USUAL = 0.7
"""Random changes are at most this share of the largest error of rounding to floats: most rounding errors are smaller.

Errors of integer codes have every size up to the largest one. The relative error of floats is largest for values just
above a power of two, and half as large just below the next power of two.
"""


@dataclass(frozen=True)
class Rounding:
    """The largest change of a tensor's values by rounding.

    The change of a value is at most the sum of ``relative`` times the value, ``of_row`` times the largest absolute
    value in its row, and ``absolute``. ``absolute`` is needed for norms of Gemma: GGUF stores each weight plus 1, and
    this sum is rounded.
    """

    relative: float = 0.0
    of_row: float = 0.0
    absolute: float = 0.0

    def coarser(self, other: Rounding) -> Rounding:
        """Return a Rounding with the larger of the two values in each field."""
        both = zip(astuple(self), astuple(other), strict=True)
        return Rounding(*map(max, both))

    def moved(self, key: str, values: Tensor) -> Tensor:
        """Return ``values`` with random changes, as large as rounding may cause them; ``key`` determines the seed."""
        chance = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        share = torch.rand(values.shape, generator=chance) * 2 - 1
        by = share * USUAL
        found = values + values * by * self.relative + by * self.absolute
        if self.of_row and values.dim() > 1:
            found = found + largest_of_rows(values).view(-1, *[1] * (values.dim() - 1)) * share * self.of_row
        return found


def largest_of_rows(values: Tensor) -> Tensor:
    """Return the largest absolute value of each row."""
    return values.abs().flatten(1).amax(1)


def roundoff(dtype: str) -> float:
    """Return the largest relative error of rounding to a dtype; 0 for dtypes of integers."""
    return ROUNDOFF.get(dtype, 0.0)


def rounding_of(info: TensorInfo) -> Rounding:
    """Return the largest change that rounding to the stored dtype or codes may have made to a tensor's values."""
    if is_decoded(info) or DTYPES[info.dtype].block:
        return _rounding_of_codes(info)
    relative = max(roundoff(one.dtype) for one in leaves(info))
    return Rounding(relative, absolute=relative * _added(info))


def _rounding_of_codes(info: TensorInfo) -> Rounding:
    codes = codes_of(info).dtype
    if codes in BITS:
        return Rounding(of_row=2.0 ** -BITS[codes])
    if codes.startswith("float8"):
        return Rounding(relative=ROUNDOFF[codes])
    return Rounding(of_row=CODES.get(codes, FOUR_BITS))


def _added(info: TensorInfo) -> float:
    """Return the absolute value of the number that GGUF adds to all values of a tensor (a norm); 0 if none is added."""
    return abs(info.made.by) if isinstance(info.made, Shifted) else 0.0


def codes_of(info: TensorInfo) -> TensorInfo:
    """Return the codes of a quantised tensor: the largest of its stored tensors, because scales may be float8, too."""
    return max(leaves(info), key=lambda one: one.numel)
