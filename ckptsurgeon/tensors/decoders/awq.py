"""Decodes AWQ's layout for matrix products (gemm): eight integers of neighbouring outputs in a word, in another order.

Codes have the shape (in, out / 8), scales (groups, out), zero points (groups, out / 8).
https://arxiv.org/abs/2306.00978, https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..composition import decoded
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._bits import check_zeros, group_numbers, unpacked, words_of
from ._decoder import Request, UndecodableError, groups_of

__all__ = ["BITS", "DECODER", "PLACES"]

BITS = 4
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""For each of eight outputs, its position in a word."""


class _Awq:
    """The decoder of AWQ. ``Decoded.facts`` has ``group``: how many inputs share a scale."""

    families = ("AWQ",)

    def describe(self, asked: Request) -> TensorInfo:
        rows, columns = asked.matrix()
        codes, scale, zero = (asked.parts.get(end) for end in (".qweight", ".scales", ".qzeros"))
        assert codes is not None
        assert scale is not None
        if fault := _fault(codes, scale, rows, columns):
            raise UndecodableError(fault)
        found = [("codes", codes), ("scale", scale)]
        if zero is not None:
            check_zeros(zero, (scale.shape[0], rows // 8))
            found.append(("zero", zero))
        return decoded((rows, columns), Decoded(tuple(found), "awq", (("group", columns // scale.shape[0]),)))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        outputs, inputs = box
        groups, words = groups_of(inputs, int(dict(made.facts)["group"])), words_of(outputs, BITS)
        found: dict[str, Box] = {"codes": (inputs, words), "scale": (groups, outputs)}
        return {**found, **({"zero": (groups, words)} if "zero" in dict(made.parts) else {})}

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        outputs, inputs = box
        group = group_numbers(made, inputs, arrays, dict(made.parts)["scale"].shape[0])
        values: Array = unpacked(arrays["codes"], outputs, BITS, PLACES).astype("<f4")
        if "zero" in arrays:
            values -= np.take(unpacked(arrays["zero"], outputs, BITS, PLACES).astype("<f4"), group, 0)
        else:
            values -= np.float32(1 << (BITS - 1))
        values *= np.take(arrays["scale"].astype("<f4"), group, 0)
        return values.T


def _fault(codes: TensorInfo, scale: TensorInfo, rows: int, columns: int) -> str:
    """Return the reason why codes and scales do not make a weight of ``rows`` and ``columns``; "" if they do."""
    if scale.shape[0] == codes.shape[0] and scale.shape[1] != rows:
        return "the codes have the layout of matrix-vector products (gemv), which no decoder knows"
    if rows % 8:
        return f"the scales are for {rows} outputs, but the number of outputs must be a multiple of 8"
    if codes.shape != (columns, rows // 8):
        return f"the codes have the shape {list(codes.shape)}, but the scales need {[columns, rows // 8]}"
    if scale.shape[1] != rows:
        return f"each group has {scale.shape[1]} scales, but the tensor has {rows} outputs"
    if columns % scale.shape[0]:
        return f"there are {scale.shape[0]} groups of scales, but {columns} inputs, which is not a multiple of that"
    return ""


DECODER = _Awq()
