"""Rounds values to unsigned integers times a scale, plus a bias for each group, as ``mlx.core.quantize`` does.

The bias is the end of the group's range that is farther from 0, so that a code represents it exactly. The scale is
changed a little so that a code represents 0 exactly, too (mlx/backend/cpu/quantized.cpp, ``quantize``). The codes of a
row are packed without gaps.
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._scale_dtypes import cast_scale
from .packed import bit_packing, packed_words

__all__ = ["ENCODER"]

SMALLEST = np.float32(1e-7)
"""The smallest scale, as in MLX."""


class _Affine:
    """The encoder of MLX's affine mode.

    ``Encoded.facts`` has ``bits`` (of a code) and ``without_zero`` (1: the range of a group is not extended to contain
    0).
    """

    facts = ("bits", "without_zero")

    def packing(self, made: Encoded) -> Packing:
        return bit_packing(made)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        top = np.float32(2 ** int(dict(made.facts)["bits"]) - 1)
        is_low = np.abs(least) > np.abs(greatest)
        scale = np.maximum((greatest - least) / top, SMALLEST)
        scale, edge = np.where(is_low, scale, -scale), np.where(is_low, least, greatest)
        steps = np.rint(edge / scale)
        scale = np.where(steps == 0, scale, edge / np.where(steps == 0, np.float32(1), steps))
        bias = np.where(steps == 0, np.float32(0), edge)
        stored = {name: cast_scale(made, one, name) for name, one in (("scale", scale), ("bias", bias))}
        return {**stored, "exact_scale": scale, "exact_bias": bias}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        top = np.float32(2 ** int(dict(made.facts)["bits"]) - 1)
        codes = np.rint((values - scales["exact_bias"]) / scales["exact_scale"])
        np.clip(codes, 0, top, out=codes)
        return codes.astype("u1"), codes * scales["scale"] + scales["bias"]

    def packed(self, made: Encoded, codes: Array) -> Array:
        return packed_words(made, codes)


ENCODER = _Affine()
