"""No tensor that config.json implies is missing, and none is left over."""

from __future__ import annotations

from ._noted import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("missing-tensors", "no tensor is missing, by config.json", unconfigured)
