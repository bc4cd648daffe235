"""Rounds values to 4-bit floats (e2m1), and packs two codes in a byte, the first in its lower half."""

from __future__ import annotations

import numpy as np

from ..ops.regions import Array

__all__ = ["TOP", "fp4_codes", "pairs_of_codes"]

TOP = np.float32(6)
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], "<f4")


def fp4_codes(values: Array) -> tuple[Array, Array]:
    """Return the codes of the nearest 4-bit floats, ties to the even code, and the values of these codes.

    As in compressed-tensors (quantization/utils/fp4_utils.py, ``cast_to_fp4``), a value below 0 that rounds to 0 gets
    the code of -0, while the value -0 gets the code of 0.
    """
    size = np.abs(values)
    codes: Array = (size > np.float32(0.25)).astype("u1")
    for end, is_odd in ((0.75, False), (1.25, True), (1.75, False), (2.5, True), (3.5, False), (5.0, True)):
        codes += size > np.float32(end) if is_odd else size >= np.float32(end)
    codes |= (values < 0).astype("u1") << np.uint8(3)
    return codes, np.take(_VALUES, codes)


def pairs_of_codes(codes: Array) -> Array:
    """Return bytes with two codes each; the last dimension of ``codes`` must be even."""
    pairs: Array = codes[..., ::2] | codes[..., 1::2] << np.uint8(4)
    return pairs
