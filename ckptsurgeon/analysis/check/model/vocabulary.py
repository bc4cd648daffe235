"""Checks that every token of the tokeniser has a row in the embedding, and that every row has a token."""

from __future__ import annotations

from ._inspect_notes import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("vocabulary", "tokens and rows agree", unconfigured)
