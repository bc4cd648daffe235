"""Rounds values to 8-bit integers times a scale, as in compressed-tensors' format ``int-quantized``."""

from __future__ import annotations

from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._integers import integer_codes, integer_scales

__all__ = ["ENCODER"]


class _Int8:
    """The encoder of int8. ``Encoded.facts`` has ``bits`` (8), and ``asymmetric`` if there are zero points."""

    facts = ("bits",)

    def packing(self, made: Encoded) -> Packing:
        return Packing()

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        return integer_scales(made, least, greatest)

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        return integer_codes(made, values, scales)

    def packed(self, made: Encoded, codes: Array) -> Array:
        return codes


ENCODER = _Int8()
