"""Rounds values to 4-bit floats in groups of 32 with a shared exponent, as in compressed-tensors' mxfp4-pack-quantized.

The format is defined in the OCP Microscaling Formats specification, v1.0. The shared exponent is the exponent of the
largest value of the group, minus 2. It is one more if the largest value is at least 1.75 times a power of two: it would
otherwise round to more than 6 (compressed_tensors/quantization/utils/mxfp_utils.py). For gpt-oss, the scale is the next
power of two that is at least (largest value / 6), so that no value is clipped (triton_kernels/numerics_details/mxfp.py,
``ROUND_UP``).
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._fp4 import TOP, fp4_codes, pairs_of_codes
from ._scale_dtypes import stored_scale

__all__ = ["ENCODER"]

QUARTER = np.uint32(1 << 21)
"""0.25 as fraction bits of a float32: added to the bits of 1.75 or more, it increases the exponent by one."""
OF_SIX = 2
"""The exponent of 6, the largest value of a code."""


class _Mxfp4:
    """The encoder of mxfp4.

    With ``rounds_up`` in ``Encoded.facts``, scales are rounded up so that no value is clipped.
    """

    facts: tuple[str, ...] = ()

    def packing(self, made: Encoded) -> Packing:
        return Packing(2, 1)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        if dict(made.facts).get("rounds_up"):
            return {"scale": stored_scale(made, np.maximum(-least, greatest) / TOP)}
        bits = np.abs(np.maximum(-least, greatest)).view("<u4")  # abs: the sign bit of -0 would count
        exponents = ((bits + QUARTER) >> np.uint32(23)).astype("<i4") - OF_SIX
        return {"scale": np.maximum(exponents, 0).astype("u1")}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        codes, meant = fp4_codes(np.clip(values / scales["scale"], -TOP, TOP))
        return codes, meant * scales["scale"]

    def packed(self, made: Encoded, codes: Array) -> Array:
        return pairs_of_codes(codes)


ENCODER = _Mxfp4()
