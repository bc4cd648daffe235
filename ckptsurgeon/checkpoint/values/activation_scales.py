"""Finds scales of activations and of the KV cache that cannot be right: zero, negative, or inverse."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping

from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY
from .impossible_values import Extent, ImpossibleValues

__all__ = ["activation_scales", "inverse_scales", "unusable_scales"]

_ACTIVATIONS = re.compile(r"[._](?:(?:input|output|act|activation)_scale|input_global_scale|scale_input)$")
"""Matches the ends of the keys of the scales of a module's inputs and outputs."""
_CACHE = re.compile(r"[._][qkv]_scale$")
"""Matches the ends of the keys of the scales of queries and of the KV cache."""
_PRODUCTS = re.compile(r"(?:down_proj|fc2|w2|dense_4h_to_h|c_proj|wo)\.")
"""Matches modules whose inputs are products without a bound: in one layer these may be very large."""
LARGEST = 1 << 10
"""The largest number of scales in a tensor that is checked; scales for each channel may have any values."""
UNSET = -1.0
"""vLLM's value for a scale that is not known."""
FEWEST, APART, NEAR = 3, 500.0, 4.0
"""A scale is the inverse of the scales of the same role in other layers if there are at least ``FEWEST`` of these, it
is over ``APART`` times as large or as small as their median, and its product with the median is 1 up to the factor
``NEAR``."""


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
    """Yield a finding on those of the scales ``keys`` that are 0 or negative; ``extent`` reads the values of a key."""
    below = [key for key in keys if (ends := extent(key)) is not None and ends[0] <= 0 and ends[0] != UNSET]
    if below:
        said = (
            f"of scales of activations or of the KV cache {'has' if len(below) == 1 else 'have'} values of 0 or below"
        )
        yield ImpossibleValues(below, said, "Take these scales from the quantised model again, or calibrate again.")


def inverse_scales(keys: Iterable[str], extent: Extent) -> Iterator[ImpossibleValues]:
    """Yield a finding on those of the scales ``keys`` that seem to be stored as 1 / scale, unlike other layers' scales.

    ``extent`` reads the values of a key.
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
    """Return the keys of the scales that are nearly 1 / median; the median is that of all scales of the same role."""
    roles: dict[str, list[str]] = {}
    for key in scales:
        roles.setdefault(NUMBER_IN_KEY.sub("{n}", key), []).append(key)
    found = []
    for keys in roles.values():
        if len(keys) <= FEWEST:
            continue
        middle = sorted(scales[key] for key in keys)[len(keys) // 2]
        found += [
            key for key in keys
            if max(scales[key] / middle, middle / scales[key]) > APART and 1 / NEAR < scales[key] * middle < NEAR
        ]  # fmt: skip
    return found if any(not _PRODUCTS.search(key) for key in found) else []
