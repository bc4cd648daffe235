"""Decodes the codes of CTranslate2, which are divided by one scale for each row (int8) or for the weight (int16).

Values are computed as in ``dequantize_kernel``: codes times the reciprocal of the scale, both in float32.
https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/src/ops/dequantize_cpu.cc
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..composition import decoded, reshape
from ..encodings.ctranslate2 import SCALE, ZERO
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._decoder import Request, UndecodableError

__all__ = ["DECODER"]


class _CTranslate2:
    """The decoder of CTranslate2. The stored tensors are ``codes`` and ``over``, the scales, with as many dimensions.

    The scales do not have the role ``scale``, since a small one makes large weights: tests for scales that multiply
    codes would report plausible scales here.
    """

    families = ("CTranslate2",)

    def describe(self, asked: Request) -> TensorInfo:
        codes = asked.codes
        if ZERO in asked.parts:
            raise UndecodableError("no decoder knows the order of AWQ's codes in CTranslate2")
        scale, rows = asked.parts[SCALE], codes.shape[:1] if codes.dtype == "int8" else ()
        if scale.dtype != "float32" or scale.shape != rows:
            raise UndecodableError(
                f"the scale is {scale.dtype} {list(scale.shape)}, but that of {codes.dtype} codes has to be float32 "
                f"{list(rows)}"
            )
        wide = reshape(scale, (*rows, *(1 for _ in codes.shape[len(rows) :])))
        return decoded(codes.shape, Decoded((("codes", codes), ("over", wide)), "ctranslate2"))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        rows, *others = made.of[1].shape
        return {"codes": box, "over": (box[0] if rows > 1 else (0, 1), *((0, 1) for _ in others))}

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        values: Array = arrays["codes"].astype("<f4", copy=False)  # changed in place: it was read for this call only
        values *= np.float32(1) / arrays["over"]
        return values


DECODER = _CTranslate2()
