"""Checks that the weights have all tensors that config.json implies, and no others."""

from __future__ import annotations

from ._inspect_notes import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("missing-tensors", "the tensors are those that config.json implies", unconfigured)
