"""Data of unknown make as what a page can show: texts, numbers and lists, of bounded length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LISTED", "LONGEST", "brief", "integer", "listed", "mapping", "number", "numbers", "text"]

LISTED = 500
"""Entries of a list that are shown."""
LONGEST = 2000
"""Characters of a text beside the tensors; a tokeniser in the metadata can have millions."""
FIGURES = 50
"""Figures of one kind, as those of an evaluation."""


def brief(value: str, longest: int = LONGEST) -> str:
    """Return a text, cut where it is long."""
    return value if len(value) <= longest else f"{value[:longest]}… ({len(value)} characters)"


def text(value: Any) -> str:
    """Return a text, '' for what is none."""
    return brief(value) if isinstance(value, str) else ""


def integer(value: Any) -> int | None:
    """Return an integer that JavaScript can hold, None for what is none."""
    return value if type(value) is int and abs(value) < 1 << 53 else None


def number(value: Any) -> float | None:
    """Return a number with the six digits that a page shows, None for what is none or could not be drawn."""
    if type(value) is int:
        return integer(value)
    if not isinstance(value, float) or not math.isfinite(value) or abs(value) > 1e300:
        return None
    return float(f"{value:.6g}")


def numbers(value: Any) -> dict[str, float]:
    """Return what is a number in a mapping."""
    found = {text(name): number(one) for name, one in list(mapping(value).items())[:FIGURES]}
    return {name: one for name, one in found.items() if one is not None}


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, {} for what is none."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> Sequence[Any]:
    """Return the first entries of a list, [] for what is none."""
    return value[:LISTED] if isinstance(value, list) else []
