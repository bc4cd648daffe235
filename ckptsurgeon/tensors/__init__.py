"""What a tensor is before anyone reads its bytes: dtype, shape, where it lies."""

from .dtypes import DTYPES, SATURATED, DType, dtype_named
from .info import Storage, TensorInfo, alias_groups
from .strides import contiguous_stride, reach

__all__ = [
    "DTYPES",
    "SATURATED",
    "DType",
    "Storage",
    "TensorInfo",
    "alias_groups",
    "contiguous_stride",
    "dtype_named",
    "reach",
]
