"""Finds norms and biases of one layer that are zeros, or random numbers, unlike those of the other layers."""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import isfinite, sqrt

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY, count, listing
from .non_finite import SmallSample

__all__ = ["AROUND_ZERO", "BIAS", "MOSTLY", "NORM", "OF_ONE_SIGN", "unlike_layer_notes"]

NORM = re.compile(r"(?:norm|ln|LayerNorm)[\w.]*[./](?:weight|gamma|scale)(?::0)?$")
"""Matches the ends of the keys of the weights of norms; torchtune, Flax and Keras name them scale or gamma."""
BIAS = re.compile(r"[._/](?:bias|beta)$")
"""Matches the ends of the keys of biases."""
FEWEST, MOSTLY = 3, 3 / 4
"""The fewest other layers, and their share of all, that must agree."""
VALUES = 256
"""How many values of a tensor are looked at, at most, to find its mean."""
OF_ONE_SIGN, AROUND_ZERO = 0.8, 0.3
"""The values of a norm are about equal if |mean| / root mean square is above the first number. Values around zero, as
in a matrix, have less than the second."""
FORMATS = {"float32": "f", "float16": "e", "float64": "d"}


def unlike_layer_notes(
    tensors: Mapping[str, TensorInfo], sample: SmallSample, *, are_zeros_said: bool = False
) -> Iterator[str]:
    """Yield notes on the norms and biases in a sample that are zeros or random, unlike those of other layers.

    If ``are_zeros_said`` is true, another note already says that a part of the file is zeros: then there is no note on
    zeros here.
    """
    roles: dict[str, list[str]] = defaultdict(list)
    for key in sample.raw:
        if NORM.search(key) or BIAS.search(key):
            roles[NUMBER_IN_KEY.sub("#", key)].append(key)
    zeros, random = list[str](), list[str]()
    for role, keys in roles.items():
        if len(keys) <= FEWEST:
            continue
        empty = [key for key in keys if not any(sample.raw[key])]
        if len(keys) - len(empty) >= max(FEWEST, MOSTLY * len(keys)):
            zeros += empty
        if NORM.search(role):
            ratios = {key: _evenness(tensors[key].dtype, sample.raw[key]) for key in keys if key not in empty}
            even = [key for key, ratio in ratios.items() if ratio > OF_ONE_SIGN]
            if len(even) >= max(FEWEST, MOSTLY * len(keys)):
                random += [key for key, ratio in ratios.items() if ratio < AROUND_ZERO]
    if zeros and not are_zeros_said:
        are = "is" if len(zeros) == 1 else "are"
        yield (
            f"{count(len(zeros), 'norm or bias', 'norms or biases')} {are} all zeros, unlike the same tensor of other "
            f"layers: {listing(zeros)}"
        )
    if random:
        has = "has" if len(random) == 1 else "have"
        yield (
            f"{count(len(random), 'norm')} {has} values around 0, but in other layers such norms have "
            f"about equal values: perhaps the bytes are those of other tensors: {listing(random)}"
        )


def _evenness(dtype: str, raw: bytes) -> float:
    """Return |mean| / root mean square of the first values of a tensor with the bytes ``raw``.

    Values that are not finite are left out. The result is 1 if all values are 0, or if the dtype is not a float.
    """
    values = [one for one in _values(dtype, raw) if isfinite(one)]
    squares = sum(one * one for one in values)
    return abs(sum(values)) / sqrt(squares * len(values)) if squares > 0 else 1.0


def _values(dtype: str, raw: bytes) -> tuple[float, ...]:
    """Return the first values of a tensor with the bytes ``raw``; () if the dtype is not a float.

    A bfloat16 is the upper half of a float32.
    """
    if dtype == "bfloat16":
        raw = raw[: 2 * VALUES]
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[::2], raw[1::2]
        raw, dtype = bytes(wide), "float32"
    letter = FORMATS.get(dtype, "")
    if not letter:
        return ()
    number = min(VALUES, len(raw) // struct.calcsize(letter))
    return struct.unpack_from(f"<{number}{letter}", raw)
