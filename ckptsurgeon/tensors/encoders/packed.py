"""Rounds values to integers of few bits, packed in words of 32 bits, as in compressed-tensors' ``pack-quantized``.

An offset is added to codes and zero points, so that none is negative. The lowest bits of a word come first, and a code
of 3, 5, 6 or 7 bits may begin in one word and end in the next
(compressed_tensors/compressors/pack_quantized/helpers.py, ``pack_to_int32``).
"""

from __future__ import annotations

from math import gcd

import numpy as np

from ..decoders._bits import WORD
from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._integers import integer_codes, integer_scales

__all__ = ["ENCODER", "bit_packing", "packed_words"]


class _Packed:
    """The encoder of packed integers.

    ``Encoded.facts`` has ``bits`` (of a code). With zero points, it also has ``asymmetric`` (1) and ``zeros_packed``
    (2: zero points are packed along the outputs, the last dimension but one).
    """

    facts = ("bits",)

    def packing(self, made: Encoded) -> Packing:
        return bit_packing(made)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        found = dict(integer_scales(made, least, greatest))
        if "zero" in found:
            found["zero"] = _unsigned(made, found["zero"])
        return found

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        if "zero" in scales:
            offset = np.float32(1 << (int(dict(made.facts)["bits"]) - 1))
            scales = {**scales, "zero": scales["zero"] - offset}
        codes, meant = integer_codes(made, values, scales)
        return _unsigned(made, codes), meant

    def packed(self, made: Encoded, codes: Array) -> Array:
        return packed_words(made, codes)


def bit_packing(made: Encoded) -> Packing:
    """Return the packing of codes of ``bits`` bits into words, without gaps."""
    bits = int(dict(made.facts)["bits"])
    shared = gcd(bits, WORD)
    return Packing(WORD // shared, bits // shared)


def packed_words(made: Encoded, codes: Array) -> Array:
    """Return the codes (uint8) of each row packed into words of 32 bits, without gaps."""
    bits, packing, size = int(dict(made.facts)["bits"]), bit_packing(made), codes.shape[-1]
    filled = -(-size // packing.codes) * packing.codes
    wide = np.zeros((*codes.shape[:-1], filled), "<u4")
    wide[..., :size] = codes
    wide = wide.reshape(*codes.shape[:-1], -1, packing.codes)
    words = np.zeros((*wide.shape[:-1], packing.items), "<u4")
    for number in range(packing.codes):
        word, shift = divmod(number * bits, WORD)
        words[..., word] |= wide[..., number] << np.uint32(shift)
        if shift + bits > WORD:
            words[..., word + 1] |= wide[..., number] >> np.uint32(WORD - shift)
    needed = -(-size * bits // WORD)
    return words.view("<i4").reshape(*codes.shape[:-1], -1)[..., :needed]


def _unsigned(made: Encoded, codes: Array) -> Array:
    offset = 1 << (int(dict(made.facts)["bits"]) - 1)
    found: Array = (codes.astype("<i2") + offset).astype("u1")
    return found


ENCODER = _Packed()
