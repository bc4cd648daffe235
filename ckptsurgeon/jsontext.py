"""JSON as people mean it: a key that stands twice, of which readers take either, is an error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .text import escape

__all__ = ["read_json", "unique_keys"]


def read_json(text: str | bytes) -> Any:
    """Return what a text spells; raises ValueError with the reason."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members; raises ValueError where two have one key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {escape(double)} stands twice")
    return found
