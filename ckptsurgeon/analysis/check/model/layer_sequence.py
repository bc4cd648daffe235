"""No layer is missing from a sequence of numbers."""

from __future__ import annotations

from ._noted import damaged, noted_check

__all__ = ["CHECK"]

CHECK = noted_check("layer-sequence", "layers are numbered without gaps", damaged)
