"""Rounds rows of numbers to the blocks of GGUF, 32 numbers with a scale, as llama.cpp and gguf-py do, bit for bit.

https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c (``quantize_row_q4_0_ref`` and the like).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...errors import PlanError
from ...util.text import escape
from ..dtypes import BLOCKS
from ..info import Blocked, TensorInfo
from .casts import cast
from .regions import Array, Box

__all__ = ["blocks_of", "rounded_to_blocks"]

SIZE = 32
_HALF_MOST = np.float32(65504)


def rounded_to_blocks(values: Array, dtype: str, name: str) -> Array:
    """Return the bytes of the blocks of float32 values, whose last dimension has whole blocks.

    ``name`` is the key of the tensor, for messages. Raises PlanError for a value that is NaN or infinite, or whose
    block needs a scale beyond float16.
    """
    numbers, nbytes = BLOCKS[dtype]
    blocks = np.ascontiguousarray(values, "<f4").reshape(-1, numbers)
    if not np.isfinite(blocks).all():
        raise PlanError(f"a value of {escape(name)} is NaN or infinite, which {dtype} cannot hold.")
    with np.errstate(all="ignore"):
        scales, codes = _TYPES[dtype](blocks)
    if scales.dtype == np.float32 and scales.size and float(np.abs(scales).max()) > _HALF_MOST:
        raise PlanError(f"a block of {escape(name)} is too large for {dtype}, whose scales are float16.")
    stored = scales.astype("<f2").view("u1") if scales.dtype == np.float32 else scales
    made = np.concatenate([stored, codes], 1)
    return made.reshape(*values.shape[:-1], values.shape[-1] // numbers * nbytes)


def blocks_of(read: Callable[[TensorInfo, Box], Array], info: TensorInfo, box: Box) -> Array:
    """Return the part ``box`` of a tensor of blocks, as bytes; ``read`` returns a part of the tensor of numbers."""
    made, (numbers, nbytes) = info.made, BLOCKS[info.dtype]
    assert isinstance(made, Blocked)
    begin, end = box[-1]
    first, last = begin // nbytes, -(-end // nbytes)
    values = read(made.of, (*box[:-1], (first * numbers, last * numbers)))
    single = cast(values, made.of.dtype, "float32")[0]
    found = rounded_to_blocks(single, info.dtype, made.name)
    return found[..., begin - first * nbytes : end - first * nbytes]


def _over(scales: Array) -> Array:
    """Return one over each scale, and 0 for 0, or for a scale so small that this is infinite."""
    over: Array = np.float32(1) / scales
    return np.where(np.isfinite(over), over, np.float32(0))


def _extreme(blocks: Array) -> Array:
    """Return the number of each block that is farthest from 0, with its sign; the first, if there are two."""
    at = np.abs(blocks).argmax(1)[:, None]
    return np.take_along_axis(blocks, at, 1)


def _codes(blocks: Array, scales: Array, middle: int) -> Array:
    """Return codes from 0 to ``2 * middle - 1``, of which ``middle`` stands for 0."""
    shifted = np.trunc(blocks * _over(scales) + np.float32(middle + 0.5))
    return shifted.astype("u1").clip(0, 2 * middle - 1)


def _pairs(codes: Array) -> Array:
    """Return the lower four bits of codes, two in a byte: the first half of a block has the lower bits."""
    low = codes & np.uint8(15)
    return low[:, : SIZE // 2] | low[:, SIZE // 2 :] << np.uint8(4)


def _q4_0(blocks: Array) -> tuple[Array, Array]:
    scales = _extreme(blocks) / np.float32(-8)
    return scales, _pairs(_codes(blocks, scales, 8))


def _q5_0(blocks: Array) -> tuple[Array, Array]:
    scales = _extreme(blocks) / np.float32(-16)
    codes = _codes(blocks, scales, 16)
    high = np.packbits(codes >> np.uint8(4), 1, bitorder="little")
    return scales, np.concatenate([high, _pairs(codes)], 1)


def _q8_0(blocks: Array) -> tuple[Array, Array]:
    scales = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    codes = blocks * _over(scales)
    whole = codes.astype("i1")
    codes -= whole
    codes += codes
    whole += codes.astype("i1")  # halves are rounded away from 0
    return scales, whole.view("u1")


_MIDDLES = tuple(map(np.float32, (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5)))
"""What lies halfway between two numbers that a code of mxfp4 can stand for; it is rounded towards 0."""
_BIAS, _LARGEST = 127, 2
"""What is added to exponents of mxfp4, and the exponent of its largest code, 6."""


def _mxfp4(blocks: Array) -> tuple[Array, Array]:
    """Return exponents of two, one for each block, and codes of a sign and three bits."""
    sizes = np.abs(blocks)
    largest = sizes.max(1, keepdims=True)
    exponents = np.where(largest > 0, np.frexp(largest)[1] - 1 - _LARGEST + _BIAS, 0).clip(0, 254)
    sizes *= np.ldexp(np.float32(1), _BIAS - exponents)
    codes = np.zeros(blocks.shape, "u1")
    for middle in _MIDDLES:
        codes += (sizes > middle).view("u1")
    codes |= ((blocks < 0) & (codes > 0)).view("u1") << np.uint8(3)
    return exponents.astype("u1"), _pairs(codes)


_TYPES: Mapping[str, Callable[[Array], tuple[Array, Array]]] = {
    "q4_0": _q4_0,
    "q5_0": _q5_0,
    "q8_0": _q8_0,
    "mxfp4": _mxfp4,
}
