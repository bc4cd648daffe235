"""Rounds values to 4-bit codes of bitsandbytes, nf4 or fp4, in blocks of the flattened weight.

The scale of a block is its largest absolute value. A code is the one nearest to the value divided by the scale
(bitsandbytes/backends/default/ops.py, ``quantize_4bit``). With double quantisation, an offset is subtracted from the
scales, and they are rounded to the nearest of 256 values, in blocks (``quantize_blockwise`` there). The CPU kernel of
bitsandbytes looks the codes of scales up in a table of 65,536 entries instead: for about one scale in 600 it returns
the code next to the nearest.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..bitsandbytes_values import VALUES
from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales

__all__ = ["ENCODER", "FP4", "NF4", "dynamic_map"]

NF4, FP4 = (np.array(VALUES[kind], "<f4") for kind in ("nf4", "fp4"))
"""The values that the 16 codes represent."""
ZERO = 7
"""The code of 0 in nf4. If the number of codes is odd, it fills the other half of the last byte."""
SMALLEST = np.float32(1e-38)
"""The number that divides the values of a block of zeros."""


@cache
def dynamic_map() -> Array:
    """Return the 256 values, in ascending order, that the 8-bit codes of scales represent (dynamic tree quantisation).

    There are seven powers of ten, each divided into twice as many steps as the next smaller one
    (https://arxiv.org/abs/1511.04561). The steps are rounded to float32 as ``torch.linspace`` rounds them.
    """
    found = [np.zeros(1, "<f4"), np.ones(1, "<f4")]
    first, last = np.float32(0.1), np.float32(1)
    for exponent in range(7):
        number = 1 << exponent
        step, index = float((last - first) / np.float32(number)), np.arange(number + 1)
        ends = np.where(index < (number + 1) // 2, float(first) + step * index, 1 - step * (number - index))
        ends = ends.astype("<f4")
        means = (ends[:-1] + ends[1:]) / np.float32(2) * np.float32(10.0 ** (exponent - 6))
        found += [means, -means]
    return np.sort(np.concatenate(found))


class _Blocks:
    """The encoder of bitsandbytes' 4-bit codes.

    ``Encoded.facts`` has ``normal`` (1 for nf4, 0 for fp4), ``flat`` (1) and ``width`` (bytes of an element of the
    stored codes). With double quantisation, it also has ``nested`` (how many scales share a scale) and ``offset``
    (subtracted from the scales).
    """

    facts = ("normal", "flat", "width")

    def packing(self, made: Encoded) -> Packing:
        return Packing(2 * int(dict(made.facts)["width"]), 1)

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        facts, largest = dict(made.facts), np.abs(np.maximum(-least, greatest))
        if "nested" not in facts:
            return {"scale": largest, "largest": largest, "meant": largest}
        offset, nested = np.float32(facts["offset"]), int(facts["nested"])
        off = largest - offset
        starts = np.arange(0, off.shape[-1], nested)
        outer = np.maximum.reduceat(np.abs(off), starts, axis=-1)
        spread = np.repeat(outer, nested, axis=-1)[..., : off.shape[-1]]
        codes = _nearest(dynamic_map(), off * (np.float32(1) / np.maximum(spread, SMALLEST)))
        meant = dynamic_map()[codes] * spread + offset
        return {"scale": codes.astype("u1"), "largest": largest, "meant": meant, "nested": outer}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        table = NF4 if dict(made.facts)["normal"] else FP4
        order = np.argsort(table, kind="stable")
        near = values * (np.float32(1) / np.maximum(scales["largest"], SMALLEST))
        codes = order.astype("u1")[_nearest(table[order], np.clip(near, -1, 1, out=near))]
        return codes, np.take(table, codes) * scales["meant"]

    def packed(self, made: Encoded, codes: Array) -> Array:
        size, width = codes.shape[-1], self.packing(made).codes
        filled = np.zeros((*codes.shape[:-1], -(-size // width) * width), "u1")
        filled[..., :size] = codes
        if size % 2 and dict(made.facts)["normal"]:
            filled[..., size] = ZERO
        pairs: Array = filled[..., ::2] << np.uint8(4) | filled[..., 1::2]
        return pairs


def _nearest(table: Array, values: Array) -> Array:
    """Return the indices of the nearest numbers in a sorted table; if two are equally near, the index of the lower."""
    ends = (table[1:] + table[:-1]) / np.float32(2)
    return np.searchsorted(ends, values, side="left")


ENCODER = _Blocks()
