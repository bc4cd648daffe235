"""The policies that move values or lie them out evenly: slice, pad, overlap, interpolate."""

from __future__ import annotations

from collections.abc import Sequence

from ...util.text import count

__all__ = ["Shape", "interpolate_fault", "is_reshape", "moving_fault"]

INTERPOLATED_DIMENSIONS = 2
"""Linear along one dimension, bilinear along two; more is nobody's practice for weights."""

Shape = Sequence[int]


def is_reshape(source: Shape, destination: Shape) -> bool:
    """Whether two shapes are (1,) and 0-d, which fit each other."""
    return sorted([tuple(source), tuple(destination)]) == [(), (1,)]


def moving_fault(policy: str, source: Shape, destination: Shape) -> str:
    """Return why slice, pad or overlap does not fit two shapes of as many dimensions, '' where it does."""
    pairs = list(enumerate(zip(source, destination, strict=True)))
    smaller = [d for d, (s, w) in pairs if s < w]
    larger = [d for d, (s, w) in pairs if s > w]
    if policy == "slice" and smaller:
        return f"the source is smaller in dimension {smaller[0]}"
    if policy == "pad" and larger:
        return f"the source is larger in dimension {larger[0]}"
    return ""


def interpolate_fault(source: Shape, destination: Shape) -> str:
    """Return why two shapes of as many dimensions are not interpolated, '' where they are."""
    differing = sum(s != d for s, d in zip(source, destination, strict=True))
    if 0 in source or 0 in destination:
        return "there is nothing to interpolate in a dimension of 0"
    if not 1 <= differing <= INTERPOLATED_DIMENSIONS:
        return f"{count(differing, 'dimension')} differ, and it is for one or two"
    return ""
