"""Decodes the blocks of GGUF: a block contains the codes of 32 or 256 consecutive numbers of a row, and their scales.

https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c. A block of 32 has one scale, a float16
(``mxfp4``: an exponent), and perhaps a minimum. A block of 256 is divided into groups of 16 or 32: each group has a
scale of few bits, and perhaps a minimum of few bits. Both are multiplied by float16 numbers that the block contains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..composition import decoded
from ..dtypes import BLOCKS
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._decoder import Request, UndecodableError, groups_of
from ._odd_scales import not_finite

__all__ = ["DECODER", "values_of_blocks"]

_FOURS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], "<f4")
"""The values of the 16 codes of a 4-bit float (e2m1), multiplied by 2."""


class _Blocks:
    """The decoder of GGUF. The only stored tensor is the codes, as bytes; their dtype determines the blocks."""

    families = ("GGUF",)

    def describe(self, asked: Request) -> TensorInfo:
        codes = asked.codes
        if codes.dtype not in _TYPES or asked.coded.shape is None:
            raise UndecodableError(f"no decoder knows {codes.dtype}")
        return decoded(asked.coded.shape, Decoded((("codes", codes),), "gguf"))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        numbers, nbytes = BLOCKS[made.of[0].dtype]
        first, last = groups_of(box[-1], numbers)
        return {"codes": (*box[:-1], (first * nbytes, last * nbytes))}

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        codes, dtype = arrays["codes"], made.of[0].dtype
        numbers, nbytes = BLOCKS[dtype]
        blocks = np.ascontiguousarray(codes).reshape(-1, nbytes)
        values = values_of_blocks(blocks, dtype)
        if not np.isfinite(values).all():
            raise not_finite(made)
        values = values.reshape(*codes.shape[:-1], codes.shape[-1] // nbytes * numbers)
        first = box[-1][0] // numbers * numbers
        return values[..., box[-1][0] - first : box[-1][1] - first]


def values_of_blocks(blocks: Array, dtype: str) -> Array:
    """Return the decoded numbers of blocks as float32, in the shape (blocks, numbers in a block).

    Each row of ``blocks`` is the bytes of one block. If the scale of a block is NaN or infinite, the decoded
    numbers of the block are not finite.
    """
    return _TYPES[dtype](blocks)


def _half(blocks: Array, at: int) -> Array:
    """Return the float16 at the byte ``at`` of each block, as float32, in the shape (blocks, 1)."""
    scales: Array = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype("<f4")
    return scales


def _bits(data: Array, bits: int, run: int) -> Array:
    """Return codes of a few bits, as uint8, in the shape (blocks, codes).

    Bytes are unpacked in runs of ``run`` bytes: first the code in the lowest ``bits`` bits of each byte, then the code
    in the next bits of each byte, and so on.
    """
    runs = data.reshape(len(data), -1, 1, run)
    shifts = np.arange(0, 8, bits, dtype="u1").reshape(1, 1, -1, 1)
    return (runs >> shifts & np.uint8((1 << bits) - 1)).reshape(len(data), -1)


def _fifth_bits(blocks: Array, at: int) -> Array:
    """Return the fifth bit of each of 32 codes, at its place in the code: 16 or 0.

    A block stores them as a word of 32 bits at the byte ``at``, the lowest bit first.
    """
    bits: Array = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return bits << np.uint8(4)


def _q4_0(blocks: Array) -> Array:
    values: Array = _half(blocks, 0) * (_bits(blocks[:, 2:], 4, 16).astype("<f4") - np.float32(8))
    return values


def _q4_1(blocks: Array) -> Array:
    values: Array = _half(blocks, 0) * _bits(blocks[:, 4:], 4, 16).astype("<f4") + _half(blocks, 2)
    return values


def _q5_0(blocks: Array) -> Array:
    codes = _bits(blocks[:, 6:], 4, 16) | _fifth_bits(blocks, 2)
    values: Array = _half(blocks, 0) * (codes.astype("<f4") - np.float32(16))
    return values


def _q5_1(blocks: Array) -> Array:
    codes = _bits(blocks[:, 8:], 4, 16) | _fifth_bits(blocks, 4)
    values: Array = _half(blocks, 0) * codes.astype("<f4") + _half(blocks, 2)
    return values


def _q8_0(blocks: Array) -> Array:
    values: Array = _half(blocks, 0) * blocks[:, 2:].view("i1").astype("<f4")
    return values


def _mxfp4(blocks: Array) -> Array:
    exponents = blocks[:, :1].astype("<i4") - 128  # one less than the exponent of the scale: _FOURS is doubled
    values: Array = np.ldexp(_FOURS[_bits(blocks[:, 1:], 4, 16)], exponents)
    return values


def _grouped(codes: Array, scales: Array, least: Array | None = None) -> Array:
    """Return codes times the scale of their group, minus the minimum of the group, in the shape (blocks, 256)."""
    values = codes.reshape(*scales.shape, -1) * scales[..., None]
    if least is not None:
        values -= least[..., None]
    return values.reshape(len(codes), -1)


def _q2_k(blocks: Array) -> Array:
    packed, codes = blocks[:, :16], _bits(blocks[:, 16:80], 2, 32)
    scales = _half(blocks, 80) * (packed & np.uint8(15)).astype("<f4")
    least = _half(blocks, 82) * (packed >> np.uint8(4)).astype("<f4")
    return _grouped(codes.astype("<f4"), scales, least)


def _q3_k(blocks: Array) -> Array:
    high = _bits(blocks[:, :32], 1, 32) << np.uint8(2)
    codes = (_bits(blocks[:, 32:96], 2, 32) | high).astype("<f4") - np.float32(4)
    low = _bits(blocks[:, 96:104], 4, 8) | _bits(blocks[:, 104:108], 2, 4) << np.uint8(4)
    return _grouped(codes, _half(blocks, 108) * (low.astype("<f4") - np.float32(32)))


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """Return the 8 scales and the 8 minima, of 6 bits each, that are packed in 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    six, high, four = np.uint8(63), np.uint8(0x30), np.uint8(15)
    scales = np.concatenate([first & six, third & four | first >> np.uint8(2) & high], 1)
    least = np.concatenate([second & six, third >> np.uint8(4) | second >> np.uint8(2) & high], 1)
    return scales.astype("<f4"), least.astype("<f4")


def _q4_k(blocks: Array) -> Array:
    scales, least = _six_bits(blocks[:, 4:16])
    codes = _bits(blocks[:, 16:], 4, 32).astype("<f4")
    return _grouped(codes, _half(blocks, 0) * scales, _half(blocks, 2) * least)


def _q5_k(blocks: Array) -> Array:
    scales, least = _six_bits(blocks[:, 4:16])
    codes = _bits(blocks[:, 48:], 4, 32) | _bits(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return _grouped(codes.astype("<f4"), _half(blocks, 0) * scales, _half(blocks, 2) * least)


def _q6_k(blocks: Array) -> Array:
    codes = _bits(blocks[:, :128], 4, 64) | _bits(blocks[:, 128:192], 2, 32) << np.uint8(4)
    scales = _half(blocks, 208) * blocks[:, 192:208].view("i1").astype("<f4")
    return _grouped(codes.astype("<f4") - np.float32(32), scales)


_TYPES: Mapping[str, Callable[[Array], Array]] = {
    "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0, "mxfp4": _mxfp4, "q2_k": _q2_k,
    "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
}  # fmt: skip

DECODER = _Blocks()
