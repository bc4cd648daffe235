"""The ids of special tokens agree with the tokeniser, and are below the number of rows of the embedding."""

from __future__ import annotations

from ._noted import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("token-ids", "ids of special tokens are right", unconfigured)
