"""The settings of quantisation describe the tensors, and no part of a quantised tensor is missing."""

from __future__ import annotations

from ._noted import damaged, noted_check

__all__ = ["CHECK"]

CHECK = noted_check("quantisation", "quantised tensors are whole and as described", damaged)
