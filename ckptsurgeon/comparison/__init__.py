"""Holds two checkpoints against each other: by headers, by values, by content under other names."""

from .beside import beside
from .difference import Difference, Numbers, Pair, Tolerance, compare, compare_outlines
from .outline import Outline, outline_from_plain, outline_of

__all__ = [
    "Difference",
    "Numbers",
    "Outline",
    "Pair",
    "Tolerance",
    "beside",
    "compare",
    "compare_outlines",
    "outline_from_plain",
    "outline_of",
]
