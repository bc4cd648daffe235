"""The encoding of torch's own quantised tensors, which include scale and zero point.

https://docs.pytorch.org/docs/stable/quantization.html
"""

from __future__ import annotations

from ..dtypes import DTYPES
from ._encoding import Encoding, same_shape

__all__ = ["ENCODINGS"]

_TYPES = frozenset(name for name, dtype in DTYPES.items() if dtype.kind == "quantized" and not dtype.block)
ENCODINGS = (Encoding("", _TYPES, (), same_shape("quantised by torch"), named=""),)
