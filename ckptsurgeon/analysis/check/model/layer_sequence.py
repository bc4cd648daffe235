"""Checks that the numbers of the layers have no gaps."""

from __future__ import annotations

from ._inspect_notes import damaged, noted_check

__all__ = ["CHECK"]

CHECK = noted_check("layer-sequence", "layers are numbered without gaps", damaged)
