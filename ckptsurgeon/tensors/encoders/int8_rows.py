"""Rounds values to 8-bit integers with a scale for each row, as bitsandbytes does (``Linear8bitLt``).

The stored scale is the largest absolute value of the row; a decoded value is code * scale / 127
(bitsandbytes/backends/default/ops.py, ``int8_vectorwise_quant``).
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales

__all__ = ["ENCODER"]

TOP = np.float32(127)


class _Rows:
    """The encoder of bitsandbytes' int8. It needs no entry of ``Encoded.facts``."""

    facts = ()

    def packing(self, made: Encoded) -> Packing:
        return Packing()

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        return {"scale": np.abs(np.maximum(-least, greatest))}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        largest = scales["scale"]
        codes = np.rint(values * (TOP / np.where(largest > 0, largest, np.float32(1))))
        np.clip(codes, -TOP, TOP, out=codes)
        return codes.astype("i1"), codes * (largest / TOP)

    def packed(self, made: Encoded, codes: Array) -> Array:
        return codes


ENCODER = _Rows()
