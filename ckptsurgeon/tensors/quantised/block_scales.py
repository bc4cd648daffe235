"""Tells by shapes whether scales of 8-bit codes are for blocks, or for rows, columns or whole tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

__all__ = ["FUSED", "are_without_blocks", "fitted_scales"]

FUSED = re.compile(r"qkv|gate_up|up_gate|in_proj|w13", re.IGNORECASE)
"""Matches names of modules that fuse several weights; each of these weights has its own blocks."""


def fitted_scales(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of scales, extended to as many dimensions as their codes have; ``shape`` is that of the codes.

    If it is not clear where dimensions are missing, ``scales`` is returned unchanged. One scale may have any number of
    dimensions, and a scale for each expert or row may lack the dimensions of size 1.
    """
    if prod(scales) == 1:
        return (1,) * len(shape)
    if len(scales) < len(shape) and scales == shape[: len(scales)]:  # a scale for each expert, or for each row
        return (*scales, *(1,) * (len(shape) - len(scales)))
    if len(scales) == 1 and len(shape) > 1 and scales[0] == shape[-2]:
        return (*(1,) * (len(shape) - 2), scales[0], 1)
    return scales


def are_without_blocks(shape: Sequence[int], scales: Sequence[int]) -> bool:
    """Return whether there is one scale for each row, each column or the whole matrix, so that no block size is needed.

    ``shape`` is that of the codes, and ``scales`` has as many dimensions (``fitted_scales``).
    """
    if len(shape) < 2 or len(scales) != len(shape):
        return False
    return tuple(scales[-2:]) in ((1, 1), (shape[-2], 1), (1, shape[-1]))
