"""Finds scales of 4-bit weights that bitsandbytes never makes: with another table of values, or all equal.

With double quantisation, the scales (``absmax``) are codes of 8 bits. Their values are in ``nested_quant_map``, the
same table for all tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ...tensors.quantised.methods import family
from .row_pieces import first_and_last_rows

__all__ = ["odd_nested_scales"]

Read = Callable[[TensorInfo], bytes]
TENSORS, SAMPLE = 2000, 2048
"""The most tensors that are looked at, and about the most bytes of the scales and of the codes of each."""
FEWEST, DIFFERENT = 16, 6
"""Scales are not equal by chance if there are ``FEWEST`` of them, and ``DIFFERENT`` different codes belong to them.

Ternary weights have only three different codes, and equal scales. In a block of zeros, all codes are equal.
"""
NEAR, TINY = 0.005, 1e-6
"""How far a value may be from that of the table: this share of it, as in bfloat16, and this number more."""
FORMATS = {"float32": "f", "float16": "e", "float64": "d"}
OTHER_MAP = "a nested_quant_map whose values are not those of bitsandbytes, so that its scales are wrong"
ONE_SCALE = "an absmax whose values are all equal, although the codes of these blocks differ"


def odd_nested_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for each tensor of bitsandbytes with impossible scales.

    The text says what the weight has, to follow "has" in a note. ``read`` returns the bytes of a small tensor.
    """
    every = [one for one in codes.tensors if family(one.method) == "bitsandbytes" and ".absmax" in one.parts]
    for one in every[:: len(every) // TENSORS + 1]:
        if ".nested_quant_map" in one.parts and not _is_dynamic_map(tensors[one.parts[".nested_quant_map"]], read):
            yield one.name, OTHER_MAP
        if one.codes and _have_one_scale(one, tensors, read):
            yield one.name, ONE_SCALE


def _have_one_scale(one: QuantisedTensor, tensors: Mapping[str, TensorInfo], read: Read) -> bool:
    """Return whether the first or the last scales of a tensor are all equal, but not 0 or 1, and the codes are not.

    Other notes are about scales that are all 0, and about those that are all 1, as before they are set.
    """
    scales, codes = tensors[one.parts[".absmax"]], tensors[one.codes]
    if not (scales.is_plain and codes.is_plain and scales.numel >= FEWEST):
        return False
    pieces = [(read(piece), piece) for piece in first_and_last_rows(scales, SAMPLE)]
    for (data, piece), some in zip(pieces, first_and_last_rows(codes, SAMPLE), strict=False):
        value, size = data[: piece.itemsize], piece.itemsize
        is_usual = not any(value) or value == struct.pack("<f", 1)
        if data and not is_usual and data == value * (len(data) // size) and len(data) // size >= FEWEST:
            own = read(some)
            if len({half for byte in own for half in (byte >> 4, byte & 15)}) >= DIFFERENT:
                return True
    return False


def _is_dynamic_map(info: TensorInfo, read: Read) -> bool:
    """Return whether a table has the values of ``_dynamic_map``; True if it cannot be read."""
    data, letter = read(info), FORMATS.get(info.dtype)
    if not data or letter is None:
        return True
    found = struct.unpack(f"<{info.numel}{letter}", data)
    wanted = _dynamic_map()
    return len(found) == len(wanted) and all(
        abs(a - b) <= NEAR * abs(b) + TINY for a, b in zip(found, wanted, strict=True)
    )


@cache
def _dynamic_map() -> tuple[float, ...]:
    """Return the 256 values of dynamic tree quantisation, as ``tensors.encoders.bitsandbytes`` does with numpy."""
    found = [0.0, 1.0]
    for exponent in range(7):
        number = 1 << exponent
        means = [(0.1 + 0.9 * (step + 0.5) / number) * 10.0 ** (exponent - 6) for step in range(number)]
        found += [*means, *(-mean for mean in means)]
    return tuple(sorted(found))
