"""The result of an alignment. A merge without alignment imports this module only, not the code that aligns models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint

__all__ = ["AlignedModels"]


@dataclass
class AlignedModels:
    """The models after an alignment.

    ``checkpoints`` has all models in their order. ``operations`` maps the index of a changed model to the operations
    that permuted its axes.
    """

    checkpoints: list[Checkpoint]
    operations: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
