"""The ids of special tokens are those of the tokeniser, and below the number of rows."""

from __future__ import annotations

from ._noted import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("token-ids", "ids of special tokens are right", unconfigured)
