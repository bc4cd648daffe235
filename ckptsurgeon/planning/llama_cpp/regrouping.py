"""Operations that make the tensors of one layout from those of the other, if new names alone do not suffice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOTHING", "Regrouping"]


@dataclass(frozen=True)
class Regrouping:
    """Operations, and patterns of their input keys (``takes``); the results have names of the other layout."""

    operations: tuple[Mapping[str, Any], ...] = ()
    takes: tuple[str, ...] = ()


NOTHING = Regrouping()
