"""Checks that the ids of special tokens agree with the tokeniser, and that the embedding has rows for these ids."""

from __future__ import annotations

from ._inspect_notes import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("token-ids", "ids of special tokens are right", unconfigured)
