"""Maps the numbers that files of ggml (GGUF, whisper.cpp) store for the types of tensors to dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ...errors import FormatError
from ...tensors.dtypes import BLOCKS, DTYPES
from ...util.text import escape
from ..base import limits

__all__ = ["NUMBERS", "REMOVED", "TYPES", "stored_shape", "tensor_dtype"]

TYPES: Mapping[int, str] = {
    0: "float32", 1: "float16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1", 10: "q2_k",
    11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs",
    19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "int8", 25: "int16", 26: "int32",
    27: "int64", 28: "float64", 29: "iq1_m", 30: "bfloat16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4",
    41: "q1_0",
}  # fmt: skip
"""The dtypes, https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml.h (``enum ggml_type``)."""
NUMBERS: Mapping[str, int] = {name: number for number, name in TYPES.items()}
REMOVED: Mapping[int, str] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}  # fmt: skip
"""Types that llama.cpp no longer reads; their codes are reordered for the kernels of certain processors."""

assert set(BLOCKS) <= set(NUMBERS)


def tensor_dtype(key: str, number: int) -> str:
    """Return the dtype of the tensor ``key``, for which a file stores ``number``; raises FormatError if unknown."""
    if number in TYPES:
        return TYPES[number]
    known = (
        f"of the type {REMOVED[number]}, which llama.cpp no longer reads" if number in REMOVED else "of unknown type"
    )
    raise FormatError(f"the tensor {escape(key)} is {known} ({number}).", rule="tensor type")


def stored_shape(key: str, dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which a tensor is described: for a quantised ``dtype``, its last dimension counts bytes.

    For other dtypes, it is ``shape``. Raises FormatError if the shape is invalid.
    """
    if max(shape, default=0) > limits.ELEMENTS or prod(filter(None, shape)) > limits.ELEMENTS // 8:
        raise FormatError(f"the tensor {escape(key)} of shape {list(shape)} has too many elements.", rule="tensor size")
    block = DTYPES[dtype].block
    if block is None:
        return shape
    if not shape or shape[-1] % block[0]:
        raise FormatError(
            f"the tensor {escape(key)} of shape {list(shape)} is {dtype}, but its row length is not a multiple of "
            f"{block[0]}.",
            rule="blocks",
        )
    return (*shape[:-1], shape[-1] // block[0] * block[1])
