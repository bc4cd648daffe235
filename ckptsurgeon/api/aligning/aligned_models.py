"""The result of an alignment. It has a file of its own, so that merges without alignment need not import the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint

__all__ = ["AlignedModels"]


@dataclass
class AlignedModels:
    """Models after an alignment: the checkpoints, and the operations that changed them, by the index of the model."""

    checkpoints: list[Checkpoint]
    operations: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
