"""Holds two checkpoints against each other: by headers, by values, by content under other names."""

from .difference import Difference, Numbers, Pair, Tolerance, compare

__all__ = ["Difference", "Numbers", "Pair", "Tolerance", "compare"]
