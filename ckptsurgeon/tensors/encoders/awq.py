"""Rounds values to 4-bit integers in AWQ's layout for matrix products: packed along the outputs, eight in a word.

The outputs in a word are permuted. The scales of inputs that AWQ found by calibration are already part of the weight.
"""

from __future__ import annotations

import numpy as np

from ..decoders.awq import BITS, PLACES
from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._unsigned import unsigned_codes, unsigned_scales

__all__ = ["ENCODER"]


class _Awq:
    """The encoder of AWQ.

    ``Encoded.facts`` has ``bits`` (4), ``across`` (1: see ``_arranged``), and perhaps ``asymmetric`` (1: zero points
    are computed).
    """

    facts = ("bits", "across")

    def packing(self, made: Encoded) -> Packing:
        return Packing(len(PLACES), 1)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        return unsigned_scales(made, least, greatest)

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        return unsigned_codes(made, values, scales)

    def packed(self, made: Encoded, codes: Array) -> Array:
        words = np.zeros((*codes.shape[:-1], codes.shape[-1] // len(PLACES)), "<u4")
        for output, place in enumerate(PLACES):
            words |= codes[..., output :: len(PLACES)].astype("<u4") << np.uint32(place * BITS)
        return words.view("<i4")


ENCODER = _Awq()
