"""Checks that config.json describes these weights: sizes, heads, experts, classes."""

from __future__ import annotations

from ._inspect_notes import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("configuration", "config.json describes these weights", unconfigured)
