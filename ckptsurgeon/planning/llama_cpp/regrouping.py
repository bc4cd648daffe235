"""Operations by which an architecture's tensors become others, before or besides a change of names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOTHING", "Regrouping"]


@dataclass(frozen=True)
class Regrouping:
    """Operations, and patterns of the keys that they take and give names of the other layout."""

    operations: tuple[Mapping[str, Any], ...] = ()
    takes: tuple[str, ...] = ()


NOTHING = Regrouping()
