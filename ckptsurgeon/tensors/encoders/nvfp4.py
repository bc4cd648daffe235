"""Rounds to 4-bit floats in groups of 16, each with an 8-bit float as scale, and one scale for the whole tensor.

The scale of the whole divides those of the groups, and is 448 * 6 over the largest value, so that the scales of groups
use all of their range (compressed_tensors/quantization/utils/helpers.py, ``generate_gparam``, ``calculate_qparams``).
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._fp4 import TOP, fp4_codes, pairs_of_codes
from ._scale_dtypes import stored_scale

__all__ = ["ENCODER"]

LARGEST_SCALE = np.float32(448)


class _Nvfp4:
    """The facts: ``over``, the largest code times the largest scale of a group."""

    facts = ("over",)

    def packing(self, made: Encoded) -> Packing:
        return Packing(2, 1)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        scale = np.maximum(-least, greatest) / TOP * np.float32(over)
        return {"scale": stored_scale(made, np.minimum(scale, LARGEST_SCALE))}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        scale = scales["scale"] / np.float32(over)
        codes, meant = fp4_codes(np.clip(values / scale, -TOP, TOP))
        return codes, meant * scale

    def packed(self, made: Encoded, codes: Array) -> Array:
        return pairs_of_codes(codes)


ENCODER = _Nvfp4()
