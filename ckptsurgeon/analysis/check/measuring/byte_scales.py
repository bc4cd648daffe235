"""Finds scales that are stored as bytes (uint8), and the dtype of the numbers that the bytes encode."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ....checkpoint.checkpoint import Checkpoint
from ....tensors.info import TensorInfo
from ....tensors.quantised.encoding import QuantisedTensor
from ....tensors.quantised.settings import stated_by
from ..tensor_roles import is_scale

__all__ = ["EXPONENTS", "with_byte_scales"]

EXPONENTS = "float8_e8m0fnu"
"""The dtype of powers of two that are stored as their exponent."""
_OF_POWERS = re.compile(r"mxfp|mxint|ue8m0", re.IGNORECASE)
"""Matches encodings whose scales are exponents."""
_MODES = {"mxfp4": EXPONENTS, "mxfp8": EXPONENTS, "nvfp4": "float8_e4m3fn"}
"""MLX's quantisation modes whose scales are bytes, each with the dtype of the numbers that these bytes encode."""


def with_byte_scales(checkpoint: Checkpoint) -> Mapping[str, TensorInfo]:
    """Return the tensors of a checkpoint; scales stored as uint8 get the dtype of the numbers that they encode."""
    scales = {
        key: one
        for one in checkpoint.codes.tensors
        for end, key in one.parts.items()
        if is_scale(end) and checkpoint[key].dtype == "uint8"
    }
    modes = stated_by(checkpoint.quantisation).modes if scales else ()
    dtypes = {key: dtype for key, one in scales.items() if (dtype := _dtype(one, modes))}
    return {**checkpoint, **{key: replace(checkpoint[key], dtype=dtype) for key, dtype in dtypes.items()}}


def _dtype(one: QuantisedTensor, modes: tuple[str, ...]) -> str:
    """Return the dtype of the numbers that a quantised tensor's scales, stored as bytes, encode; "" if it is not known.

    ``modes`` are the quantisation modes in MLX's settings, such as mxfp4.
    """
    if _OF_POWERS.search(one.method):
        return EXPONENTS
    is_mlx = one.method.startswith("MLX") and ".biases" not in one.parts
    return next((_MODES[mode] for mode in modes if mode in _MODES), "") if is_mlx else ""
