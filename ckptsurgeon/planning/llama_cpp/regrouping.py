"""Operations that convert tensors from one layout to the other, if new names alone do not suffice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOTHING", "Regrouping"]


@dataclass(frozen=True)
class Regrouping:
    """Operations whose results have the names of the other layout; ``takes`` are patterns of the keys that they use."""

    operations: tuple[Mapping[str, Any], ...] = ()
    takes: tuple[str, ...] = ()


NOTHING = Regrouping()
