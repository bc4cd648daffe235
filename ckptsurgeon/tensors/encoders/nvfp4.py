"""Rounds values to 4-bit floats in groups of 16, each with an 8-bit float as scale, and a global scale for the tensor.

The scales of groups are multiplied by the global scale (448 * 6 / largest value) before they are stored, so that they
use the whole range of their dtype. Decoders divide by the global scale
(compressed_tensors/quantization/utils/helpers.py, ``generate_gparam``, ``calculate_qparams``). ModelOpt stores the
reciprocal of the global scale, and its decoder multiplies by it
(modelopt/torch/quantization/qtensor/nvfp4_tensor.py).
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._fp4 import TOP, fp4_codes, pairs_of_codes
from ._scale_dtypes import stored_scale

__all__ = ["ENCODER"]

LARGEST_SCALE, LEAST_SCALE = np.float32(448), np.float32(2**-9)


class _Nvfp4:
    """The encoder of nvfp4.

    ``Encoded.facts`` has ``over`` (the largest code times the largest scale of a group), and ``times`` (1) for the
    layout of ModelOpt.
    """

    facts = ("over",)

    def packing(self, made: Encoded) -> Packing:
        return Packing(2, 1)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        if dict(made.facts).get("times"):
            scale = np.maximum(-least, greatest) / (TOP * np.float32(over))
            scale = np.where(scale == 0, np.float32(1), np.clip(scale, LEAST_SCALE, LARGEST_SCALE))
            return {"scale": stored_scale(made, scale)}
        scale = np.maximum(-least, greatest) / TOP * np.float32(over)
        return {"scale": stored_scale(made, np.minimum(scale, LARGEST_SCALE))}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        times = dict(made.facts).get("times")
        scale = scales["scale"] * np.float32(over) if times else scales["scale"] / np.float32(over)
        codes, meant = fp4_codes(np.clip(values / scale, -TOP, TOP))
        return codes, meant * scale

    def packed(self, made: Encoded, codes: Array) -> Array:
        return pairs_of_codes(codes)


ENCODER = _Nvfp4()
