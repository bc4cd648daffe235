"""Strides, in elements: those of a row-major tensor, and how far a strided one reaches."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["contiguous_stride", "reach"]


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a row-major tensor of ``shape``."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements from its first one a strided tensor reaches (0 when it is empty)."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
