"""Decodes GPTQ's layout: integers packed along the inputs, zero points along the outputs.

Codes have the shape (in * bits / 32, out), scales (groups, out), zero points (groups, out * bits / 32). The first
version of the format stores each zero point minus one. https://arxiv.org/abs/2210.17323,
https://github.com/ModelCloud/GPTQModel
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..composition import decoded
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._bits import WORD, check_zeros, group_numbers, group_size, unpacked, words_of
from ._decoder import Request, UndecodableError, groups_of

__all__ = ["DECODER"]


class _Gptq:
    """The decoder of GPTQ.

    ``Decoded.facts`` has ``bits`` (of a code), ``group`` (how many inputs share a scale) and ``plus`` (added to zero
    points).
    """

    families = ("GPTQ",)

    def describe(self, asked: Request) -> TensorInfo:
        rows, columns = asked.matrix()
        codes, scale, zero, order = (asked.parts.get(end) for end in (".qweight", ".scales", ".qzeros", ".g_idx"))
        assert codes is not None
        assert scale is not None
        bits = codes.shape[0] * WORD // columns
        if not 1 < bits <= 8:
            raise UndecodableError(
                f"the qweight has room for codes of {bits} bits in {columns} columns; 2 to 8 bits are possible"
            )
        if codes.shape[0] != -(-columns * bits // WORD):
            raise UndecodableError(
                f"the qweight has {codes.shape[0]} rows of 32-bit words, but {columns} columns of {bits} bits fill "
                f"only {-(-columns * bits // WORD)}: the number of columns or of bits is wrong"
            )
        if scale.shape[1] != rows:
            raise UndecodableError(f"each group has {scale.shape[1]} scales, but the tensor has {rows} rows")
        found = [("codes", codes), ("scale", scale)]
        if zero is not None:
            check_zeros(zero, (scale.shape[0], -(-rows * bits // WORD)))
            found.append(("zero", zero))
        if order is not None:
            if order.shape != (columns,):
                raise UndecodableError("the g_idx does not have one value for each column")
            found.append(("order", order))
        group = group_size(columns, scale.shape[0], asked.settings, is_ordered=order is not None)
        second = "v2" in asked.settings.stated.format
        return decoded(
            (rows, columns),
            Decoded(tuple(found), "gptq", (("bits", bits), ("group", group), ("plus", 0 if second else 1))),
        )

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        facts, (outputs, inputs) = dict(made.facts), box
        bits, stored = int(facts["bits"]), dict(made.parts)
        groups = (0, stored["scale"].shape[0]) if "order" in stored else groups_of(inputs, int(facts["group"]))
        found: dict[str, Box] = {"codes": (words_of(inputs, bits), outputs), "scale": (groups, outputs)}
        if "zero" in stored:
            found["zero"] = (groups, words_of(outputs, bits))
        if "order" in stored:
            found["order"] = (inputs,)
        return found

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        facts, (outputs, inputs) = dict(made.facts), box
        bits = int(facts["bits"])
        values: Array = unpacked(arrays["codes"].T, inputs, bits).astype("<f4")
        zero: Array = np.full((1, 1), 1 << (bits - 1), "<f4")
        group = group_numbers(made, inputs, arrays, dict(made.parts)["scale"].shape[0])
        if "zero" in arrays:
            zero = np.take(
                unpacked(arrays["zero"], outputs, bits).T.astype("<f4") + np.float32(facts["plus"]), group, 1
            )
        values -= zero
        values *= np.take(arrays["scale"].T.astype("<f4"), group, 1)
        return values


DECODER = _Gptq()
