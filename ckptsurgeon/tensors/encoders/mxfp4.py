"""Rounds to 4-bit floats in groups of 32 with a shared exponent, as compressed-tensors' ``mxfp4-pack-quantized``.

The exponent is that of the largest value of the group, less 2; it is one more if the value is at least 1.75 times a
power of two, which would round beyond 6 otherwise (compressed_tensors/quantization/utils/mxfp_utils.py). The format is
that of the OCP Microscaling Formats specification, v1.0. Those who quantise gpt-oss take the next power of two that is
at least the largest value over 6, so that no value is cut off (triton_kernels/numerics_details/mxfp.py, ``ROUND_UP``).
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
"""A quarter, in the bits of a fraction of float32: added to 1.75 or more, it makes the exponent one larger."""
OF_SIX = 2
"""The exponent of 6, the largest code."""


class _Mxfp4:
    """Rounds to 4-bit floats, with a power of two for each group; with the fact ``rounds_up`` no value is cut off."""

    facts: tuple[str, ...] = ()

    def packing(self, made: Encoded) -> Packing:
        return Packing(2, 1)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        if dict(made.facts).get("rounds_up"):
            return {"scale": stored_scale(made, np.maximum(-least, greatest) / TOP)}
        bits = np.abs(np.maximum(-least, greatest)).view("<u4")  # -0 has a bit, too
        exponents = ((bits + QUARTER) >> np.uint32(23)).astype("<i4") - OF_SIX
        return {"scale": np.maximum(exponents, 0).astype("u1")}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        codes, meant = fp4_codes(np.clip(values / scales["scale"], -TOP, TOP))
        return codes, meant * scales["scale"]

    def packed(self, made: Encoded, codes: Array) -> Array:
        return pairs_of_codes(codes)


ENCODER = _Mxfp4()
