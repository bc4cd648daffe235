"""Rounds values to the nearest integers in GPTQ's layout, without GPTQ's corrections, which need inputs of the layer.

Codes are packed along the inputs, and stored with rows and columns exchanged. The first version of the format stores
zero points minus one. In this version, no zero point is 0, because libraries do not agree how a zero point of 0 is
stored.
"""

from __future__ import annotations

from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._unsigned import unsigned_codes, unsigned_scales
from .packed import bit_packing, packed_words

__all__ = ["ENCODER"]


class _Gptq:
    """The encoder of GPTQ.

    ``Encoded.facts`` has ``bits`` (of a code), ``turned`` (1: see ``_arranged``), ``plus`` (added to stored zero points
    when they are decoded), and perhaps ``asymmetric`` (1: zero points are computed).
    """

    facts = ("bits", "turned", "plus")

    def packing(self, made: Encoded) -> Packing:
        return bit_packing(made)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        return unsigned_scales(made, least, greatest)

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        return unsigned_codes(made, values, scales)

    def packed(self, made: Encoded, codes: Array) -> Array:
        return packed_words(made, codes)


ENCODER = _Gptq()
