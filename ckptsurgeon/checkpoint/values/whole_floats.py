"""Finds 8-bit floats that are bytes which a program read as int8, and then cast to 8-bit floats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from .row_pieces import first_and_last_rows
from .zero_points import Read

__all__ = ["WHOLE", "whole_floats"]

TENSORS, SAMPLE = 1000, 4096
"""The most tensors that are looked at, spread over the model, and about the most bytes of each."""
FEWEST, DIFFERENT = 1024, 16
"""The fewest codes other than 0 that are judged, and the fewest different magnitudes: ternary weights have only one."""
LARGE, LARGEST = 32.0, 128.0
"""The largest magnitude in cast bytes is from ``LARGE`` to ``LARGEST``, the largest of int8 as an 8-bit float.

Such bytes are spread over the whole range of int8.
"""
WHOLE = (
    f"8-bit floats that are all whole numbers up to {LARGEST:g}, although fractions are usual: perhaps their bytes "
    "were read as int8, and cast to float8_e4m3fn"
)


def whole_floats(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for e4m3 weights of whole numbers: probably int8 values that were cast to fp8.

    In weights that were quantised to e4m3, 2 % of the codes or more have fractions, and the largest of most blocks is
    448. The text says what the weight has, to follow "has" in a note. ``read`` returns the bytes of a tensor.
    """
    every = [one for one in codes.tensors if one.codes and tensors[one.codes].dtype == "float8_e4m3fn"]
    for one in every[:: len(every) // TENSORS + 1]:
        info = tensors[one.codes]
        if not info.is_plain or len(info.shape) != 2:
            continue
        if _are_whole(b"".join(map(read, first_and_last_rows(info, SAMPLE)))):
            yield one.name, WHOLE


def _magnitude(code: int) -> float:
    """Return the value of a positive e4m3 code: 4 bits of exponent and 3 of mantissa. https://arxiv.org/abs/2209.05433."""
    exponent, mantissa = code >> 3, code & 7
    return float((8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9)


_OF_INT8 = bytes(code for code in range(256) if (size := _magnitude(code & 0x7F)).is_integer() and size <= LARGEST)
"""The codes of the whole numbers up to ``LARGEST``, of both signs."""


def _are_whole(data: bytes) -> bool:
    """Return whether there are many different codes, all of them whole numbers up to 128, and some of them large."""
    if data.translate(None, _OF_INT8):
        return False  # as for nearly all tensors: there are thousands
    different = {code & 0x7F for code in data} - {0}
    number = len(data) - data.count(0) - data.count(0x80)
    return number >= FEWEST and len(different) >= DIFFERENT and max(map(_magnitude, different)) >= LARGE
