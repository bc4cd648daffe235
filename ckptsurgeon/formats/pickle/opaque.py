"""Why the values of a tensor are not plain bytes, in words that can follow a colon."""

from __future__ import annotations

__all__ = ["ARRAY", "META", "NESTED", "QUANTISED", "SPARSE"]

QUANTISED = "it is quantised"
SPARSE = "it is sparse"
NESTED = "its values are nested tensors"
META = "it was saved on the meta device, without values"
ARRAY = "its values are an array inside the pickle"
