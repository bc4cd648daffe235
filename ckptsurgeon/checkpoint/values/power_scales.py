"""Finds scales that are not powers of two, although the settings say that scales are stored as exponents (ue8m0)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from ...tensors.quantised.methods import family
from .row_pieces import first_and_last_rows

__all__ = ["odd_power_scales"]

Read = Callable[[TensorInfo], bytes]
TENSORS, SAMPLE = 256, 2048
"""The most tensors that are looked at, spread over the model, and about the most bytes of the scales of each."""
SCALES = (".weight_scale_inv", "_scale_inv", ".weight_scale")
FRACTIONS = {"float32": (4, 0x7FFFFF), "bfloat16": (2, 0x7F)}
"""{dtype: (bytes of a number, the bits of its fraction)}: the fraction of a power of two is 0."""
NOT_POWERS = (
    "scales that are not powers of two, although its quantization_config says scale_fmt ue8m0: loaders may round them"
)


def odd_power_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for 8-bit floats whose scales are not powers of two (DeepSeek-V3.1).

    The text says what the weight has, to follow "has" in a note. ``read`` returns the bytes of a small tensor.
    """
    if str(settings.get("scale_fmt")).lower() != "ue8m0":
        return
    scales = {
        one.name: one.parts[end]
        for one in codes.tensors if family(one.method) == "fp8"
        for end in SCALES if end in one.parts
    }  # fmt: skip
    for name, key in list(scales.items())[:: len(scales) // TENSORS + 1]:
        info = tensors[key]
        if info.dtype not in FRACTIONS or not info.is_plain:
            continue
        size, fraction = FRACTIONS[info.dtype]
        data = b"".join(map(read, first_and_last_rows(info, SAMPLE)))
        numbers = (int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size))
        if any(number & fraction for number in numbers):
            yield name, NOT_POWERS
