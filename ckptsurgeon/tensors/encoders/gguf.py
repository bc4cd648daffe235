"""Rounds rows of numbers to the blocks of GGUF, which contain their scales, to the same bits as llama.cpp and gguf-py.

See https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c (``quantize_row_q4_0_ref`` and the like).
This module makes blocks of 32 numbers; ``_k_blocks`` makes blocks of 256 numbers (the K types).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...errors import PlanError
from ...util.text import escape
from ..decoders.gguf import values_of_blocks
from ..dtypes import BLOCKS, ROUNDED
from ..info import Encoded
from ..ops.regions import Array
from ._encoder import Packing, Scales
from ._k_blocks import K_TYPES, bits_together

__all__ = ["ENCODER"]

_NAMES = {number: name for name, number in ROUNDED.items()}
SIZE = 32


class _Gguf:
    """The encoder of GGUF. ``Encoded.facts`` has ``type``, a number in ``ROUNDED``; scales are part of the codes."""

    facts = ("type",)

    def packing(self, made: Encoded) -> Packing:
        return Packing(*BLOCKS[_type(made)])

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        return {}

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        dtype = _type(made)
        blocks = np.ascontiguousarray(values, "<f4").reshape(-1, BLOCKS[dtype][0])
        if not np.isfinite(blocks).all():
            raise PlanError(f"a value of {escape(made.name)} is NaN or infinite, which {dtype} cannot represent.")
        stored = _TYPES[dtype](blocks)
        meant = values_of_blocks(stored, dtype).reshape(values.shape)
        if not np.isfinite(meant).all():
            raise PlanError(
                f"a block of {escape(made.name)} has values too large for {dtype}, whose scales are float16."
            )
        return stored.reshape(*values.shape[:-1], -1), meant

    def packed(self, made: Encoded, codes: Array) -> Array:
        return codes


def _type(made: Encoded) -> str:
    return _NAMES[int(dict(made.facts)["type"])]


def _over(scales: Array) -> Array:
    """Return the reciprocal of each scale; 0 if it would be infinite."""
    over: Array = np.float32(1) / scales
    return np.where(np.isfinite(over), over, np.float32(0))


def _extreme(blocks: Array) -> Array:
    """Return the number in each block that is farthest from 0, with its sign; if there are several, the first."""
    at = np.abs(blocks).argmax(1)[:, None]
    return np.take_along_axis(blocks, at, 1)


def _codes(blocks: Array, scales: Array, middle: int) -> Array:
    """Return codes from 0 to ``2 * middle - 1``; the code ``middle`` represents 0."""
    shifted = np.trunc(blocks * _over(scales) + np.float32(middle + 0.5))
    return shifted.astype("u1").clip(0, 2 * middle - 1)


def _block(*parts: Array) -> Array:
    """Return the bytes of blocks, joined from ``parts``: float32 numbers become float16, bytes do not change."""
    return np.concatenate(
        [one if one.dtype == np.uint8 else np.ascontiguousarray(one.astype("<f2")).view("u1") for one in parts], 1
    )


def _low(codes: Array) -> Array:
    """Return the lower four bits of codes, two codes in a byte.

    The lower half of a byte has a code from the first half of a block, the upper half one from the second half.
    """
    return bits_together(codes & np.uint8(15), 4, SIZE // 2)


def _fifth(codes: Array) -> Array:
    """Return the fifth bit of each code, in words of 32 bits."""
    return np.packbits(codes >> np.uint8(4), 1, bitorder="little")


def _q4_0(blocks: Array) -> Array:
    scales = _extreme(blocks) / np.float32(-8)
    return _block(scales, _low(_codes(blocks, scales, 8)))


def _q4_1(blocks: Array) -> Array:
    scales, least, codes = _above_minimum(blocks, 15)
    return _block(scales, least, _low(codes))


def _q5_0(blocks: Array) -> Array:
    scales = _extreme(blocks) / np.float32(-16)
    codes = _codes(blocks, scales, 16)
    return _block(scales, _fifth(codes), _low(codes))


def _q5_1(blocks: Array) -> Array:
    scales, least, codes = _above_minimum(blocks, 31)
    return _block(scales, least, _fifth(codes), _low(codes))


def _above_minimum(blocks: Array, most: int) -> tuple[Array, Array, Array]:
    """Return the scale and the minimum of each block, and codes from 0 to ``most``.

    A code is the distance of a number from the minimum, divided by the scale and rounded.
    """
    least = blocks.min(1, keepdims=True)
    scales = (blocks.max(1, keepdims=True) - least) / np.float32(most)
    codes = np.trunc((blocks - least) * _over(scales) + np.float32(0.5))
    return scales, least, codes.clip(0, most).astype("u1")


def _q8_0(blocks: Array) -> Array:
    scales = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    codes = blocks * _over(scales)
    whole = codes.astype("i1")
    codes -= whole
    codes += codes
    whole += codes.astype("i1")  # halves are rounded away from 0
    return _block(scales, whole.view("u1"))


_MIDDLES = tuple(map(np.float32, (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5)))
"""The numbers halfway between two neighbouring values of mxfp4 codes; these numbers are rounded towards 0."""
_BIAS, _LARGEST = 127, 2
"""The bias of the exponents of mxfp4 blocks, and the exponent of 6, the largest value of a code."""


def _mxfp4(blocks: Array) -> Array:
    """Return the bytes of mxfp4 blocks: the exponent of a power of two, then codes (a sign bit and three bits)."""
    sizes = np.abs(blocks)
    largest = sizes.max(1, keepdims=True)
    exponents = np.where(largest > 0, np.frexp(largest)[1] - 1 - _LARGEST + _BIAS, 0).clip(0, 254)
    sizes *= np.ldexp(np.float32(1), _BIAS - exponents)
    codes = np.zeros(blocks.shape, "u1")
    for middle in _MIDDLES:
        codes += (sizes > middle).view("u1")
    codes |= ((blocks < 0) & (codes > 0)).view("u1") << np.uint8(3)
    return _block(exponents.astype("u1"), _low(codes))


_TYPES: Mapping[str, Callable[[Array], Array]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "mxfp4": _mxfp4,
    **K_TYPES,
}

ENCODER = _Gguf()
