"""Finds scales that no quantiser writes: 0, negative, inverse, or no powers of two although they should be.

With double quantisation, bitsandbytes stores scales (``absmax``) as codes of 8 bits. Their values are in
``nested_quant_map``, the same table for all tensors.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import EXPERT_SCALES, QuantisedTensor, QuantisedTensors
from ...tensors.quantised.methods import family
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import NUMBER_IN_KEY
from .impossible_values import Extent, ImpossibleValues
from .samples import Read, first_and_last_rows

__all__ = ["activation_scales", "inverse_scales", "odd_nested_scales", "odd_power_scales", "unusable_scales"]

_ACTIVATIONS = re.compile(r"[._](?:(?:input|output|act|activation)_scale|input_global_scale|scale_input)$")
"""Matches the ends of the keys of the scales of a module's inputs and outputs."""
_CACHE = re.compile(r"[._][qkv]_scale$")
"""Matches the ends of the keys of the scales of queries and of the KV cache."""
_PRODUCTS = re.compile(r"(?:down_proj|fc2|w2|dense_4h_to_h|c_proj|wo)\.")
"""Matches modules whose inputs are products without an upper bound: in single layers these inputs may be very large."""
LARGEST = 1 << 10
"""Tensors with more scales are not checked: these are scales of channels, which may have any values."""
UNSET = -1.0
"""The value that vLLM uses for an unknown scale."""
FEWEST_LAYERS, APART, INVERSE = 3, 500.0, 4.0
"""A scale is the inverse of the scales of its role in other layers if it meets three conditions.

There are at least ``FEWEST_LAYERS`` other scales; it is over ``APART`` times as large or as small as their median; and
its product with the median is between 1 / ``INVERSE`` and ``INVERSE``.
"""


def activation_scales(tensors: Mapping[str, TensorInfo], coded: Container[str]) -> list[str]:
    """Return the keys of the scales of activations; ``coded`` has the keys of the parts of quantised tensors."""
    found = [key for key in tensors if key.endswith(_ENDS)]
    if not found or not any(key in coded for key in tensors):
        return []
    return [
        key
        for key in found
        if (_CACHE.search(key) or (key in coded and _ACTIVATIONS.search(key)))
        and tensors[key].numel <= LARGEST
        and DTYPES[tensors[key].dtype].kind == "float"
    ]


_ENDS = ("_scale", "scale_input")


def unusable_scales(keys: Iterable[str], extent: Extent) -> Iterator[ImpossibleValues]:
    """Yield a finding on the scales ``keys`` that have values of 0 or below; ``extent`` reads the values of a key."""
    below = [key for key in keys if (ends := extent(key)) is not None and ends[0] <= 0 and ends[0] != UNSET]
    if below:
        said = (
            f"of scales of activations or of the KV cache {'has' if len(below) == 1 else 'have'} values of 0 or below"
        )
        yield ImpossibleValues(below, said, "Take these scales from the quantised model again, or calibrate again.")


def inverse_scales(keys: Iterable[str], extent: Extent) -> Iterator[ImpossibleValues]:
    """Yield a finding on scales that seem to be stored as 1 / scale, unlike the scales of other layers.

    ``keys`` are the keys of the scales, and ``extent`` reads the values of a key.
    """
    inverse = _inverse({key: ends[1] for key in keys if (ends := extent(key)) is not None and ends[0] > 0})
    if inverse:
        are, them = ("is", "it") if len(inverse) == 1 else ("are", "them")
        said = (
            f"of scales of activations {are} perhaps inverse: those of other layers are over {APART:g} times smaller "
            f"or larger, and nearly 1 divided by {them}"
        )
        yield ImpossibleValues(inverse, said, "Store the inverse of these scales, as in the other layers.")


def _inverse(scales: Mapping[str, float]) -> list[str]:
    """Return the keys of the scales that are nearly 1 / median; the median is over the same scales of all layers."""
    roles: dict[str, list[str]] = {}
    for key in scales:
        roles.setdefault(NUMBER_IN_KEY.sub("{n}", key), []).append(key)
    found = []
    for keys in roles.values():
        if len(keys) <= FEWEST_LAYERS:
            continue
        middle = sorted(scales[key] for key in keys)[len(keys) // 2]
        found += [
            key for key in keys
            if max(scales[key] / middle, middle / scales[key]) > APART and 1 / INVERSE < scales[key] * middle < INVERSE
        ]  # fmt: skip
    return found if any(not _PRODUCTS.search(key) for key in found) else []


TENSORS, SAMPLE = 2000, 2048
"""The largest number of tensors that are looked at, and (roughly) of bytes of their scales and of their codes."""
FEWEST, DIFFERENT = 16, 6
"""If ``FEWEST`` or more scales are all equal, and their codes have ``DIFFERENT`` or more values, this is not by chance.

Ternary weights have only three different codes, and equal scales. In a block of zeros, all codes are equal.
"""
NEAR, TINY = 0.005, 1e-6
"""A value may differ from the table's value by the share ``NEAR`` (as in bfloat16), plus the number ``TINY``."""
FORMATS = {"float32": "f", "float16": "e", "float64": "d"}
OTHER_MAP = Note(
    NoteKind.BROKEN_CODES,
    "a nested_quant_map whose values are not those of bitsandbytes, so that its scales are wrong",
)
ONE_SCALE = "an absmax whose values are all equal, although the codes of these blocks differ"


def odd_nested_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for each tensor of bitsandbytes whose scales cannot be right.

    The text follows "has" in a note: it says what the weight has. ``read`` returns the bytes of a small tensor.
    """
    every = [one for one in codes.tensors if family(one.method) == "bitsandbytes" and ".absmax" in one.parts]
    for one in every[:: len(every) // TENSORS + 1]:
        if ".nested_quant_map" in one.parts and not _is_dynamic_map(tensors[one.parts[".nested_quant_map"]], read):
            yield one.name, OTHER_MAP
        if one.codes and _have_one_scale(one, tensors, read):
            yield one.name, ONE_SCALE


def _have_one_scale(one: QuantisedTensor, tensors: Mapping[str, TensorInfo], read: Read) -> bool:
    """Return whether the first or the last scales of a tensor are all equal, but their codes differ.

    The result is False for scales that are all 0, or all 1 (as before they are set): other notes are about them.
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
    """Return whether the lookup table ``info`` has the values of ``_dynamic_map``; True if it cannot be read."""
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
    """Return the 256 values of dynamic tree quantisation, as ``tensors.encoders.bitsandbytes`` does, without numpy."""
    found = [0.0, 1.0]
    for exponent in range(7):
        number = 1 << exponent
        means = [(0.1 + 0.9 * (step + 0.5) / number) * 10.0 ** (exponent - 6) for step in range(number)]
        found += [*means, *(-mean for mean in means)]
    return tuple(sorted(found))


TENSORS_OF_POWERS = 256
"""The most tensors whose scales are looked at for powers of two, spread over the model."""
SCALES = (".weight_scale_inv", "_scale_inv", ".weight_scale", *EXPERT_SCALES)
FRACTIONS = {"float32": (4, 0x7FFFFF), "bfloat16": (2, 0x7F)}
"""{dtype: (bytes of a number, bit mask of its fraction)}: the fraction of a power of two is 0."""
NOT_POWERS = (
    "scales that are not powers of two, although its quantization_config says scale_fmt ue8m0: loaders may round them"
)


def odd_power_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for 8-bit floats whose scales should be powers of two, but are not.

    The settings say so with ``scale_fmt`` ue8m0, as in DeepSeek-V3.1. The text follows "has" in a note: it says what
    the weight has. ``read`` returns the bytes of a small tensor.
    """
    if str(settings.get("scale_fmt")).lower() != "ue8m0":
        return
    scales = {
        one.name: one.parts[end]
        for one in codes.tensors if family(one.method) == "fp8"
        for end in SCALES if end in one.parts
    }  # fmt: skip
    for name, key in list(scales.items())[:: len(scales) // TENSORS_OF_POWERS + 1]:
        info = tensors[key]
        if info.dtype not in FRACTIONS or not info.is_plain:
            continue
        size, fraction = FRACTIONS[info.dtype]
        data = b"".join(map(read, first_and_last_rows(info, SAMPLE)))
        numbers = (int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size))
        if any(number & fraction for number in numbers):
            yield name, NOT_POWERS
