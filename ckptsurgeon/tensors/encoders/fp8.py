"""Rounds values to 8-bit floats times a scale: one for each block, each row, or the whole tensor.

transformers multiplies values by (largest code / largest value), and stores the reciprocal of that factor as the scale
(``Fp8Quantize`` in transformers/integrations/finegrained_fp8.py). compressed-tensors divides values by the stored scale
(compressed_tensors/quantization/utils/helpers.py, ``calculate_qparams``). The results differ in single bits.
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.regions import Array
from ..ops.small_floats import from_small, to_small
from ._encoder import Packing, Scales
from ._scale_dtypes import power_above, stored_scale

__all__ = ["ENCODER"]

E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


class _Float8:
    """The encoder of 8-bit floats. ``Encoded.facts`` has ``top`` (the value of the largest code), and perhaps a flag.

    With the flag ``reciprocal`` (1), scales are computed as in transformers. Without it, they are computed as in
    compressed-tensors. With the flag ``powers`` (1), they are then rounded up to powers of two, as DeepSeek-V3.1 does
    (``scale_fmt`` ue8m0).
    """

    facts = ("top",)

    def packing(self, made: Encoded) -> Packing:
        return Packing()

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        facts, largest = dict(made.facts), np.maximum(-least, greatest)
        top = np.float32(facts["top"])
        if facts.get("powers"):
            return {"scale": power_above(largest / top)}
        if not facts.get("reciprocal"):
            return {"scale": stored_scale(made, largest / top)}
        # torch divides a number by a tensor in this way. If the largest value of a group is below 1.3e-36, the factor
        # would be infinite: the largest float32 replaces it.
        times = np.float32(1) / np.where(largest > 0, largest, np.float32(1)) * top
        times = np.minimum(np.where(largest > 0, times, np.float32(1)), np.finfo("f4").max)
        return {"scale": (np.float32(1) / times).astype("<f4"), "times": times.astype("<f4")}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        top = np.float32(dict(made.facts)["top"])
        dtype = E4M3 if top == LARGEST[E4M3] else E5M2
        times = scales.get("times")
        if times is not None:
            values = values * times
        else:
            values = values / scales["scale"]
            values += np.float32(0)  # -0 becomes 0, as in compressed-tensors, which adds a zero point
        codes = to_small(np.clip(values, -top, top, out=values), dtype)
        meant = from_small(codes, dtype)
        return codes, meant * scales["scale"]

    def packed(self, made: Encoded, codes: Array) -> Array:
        return codes


ENCODER = _Float8()
