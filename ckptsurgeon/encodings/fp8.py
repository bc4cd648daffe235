"""8-bit floats with scales: for each block, each channel, or the whole tensor.

DeepSeek-V3 names them ``weight_scale_inv``, https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md;
compressed-tensors and ModelOpt ``weight_scale``; ComfyUI ``scale_weight``; Mistral ``qscale_weight``; TensorRT-LLM
``weights_scaling_factor``, others ``weight_descale``. Without scales an 8-bit float is a number like any other.
"""

from __future__ import annotations

from ._encoding import Encoding, Logical, Parts
from ._settings import Said

__all__ = ["ENCODINGS"]

_TYPES = frozenset({"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"})
_SHARED_EXPONENTS = ("uint8", "float8_e8m0fnu")


def _logical(parts: Parts, said: Said) -> Logical:
    codes, scale, *_ = parts.values()
    return Logical.of(_method(scale.dtype, scale.shape), codes.shape)


def _method(dtype: str, shape: tuple[int, ...]) -> str:
    if dtype in _SHARED_EXPONENTS:
        return "mxfp8"
    longer = [size for size in shape if size > 1]
    return f"fp8 with {('one scale', 'channel scales')[len(longer)] if len(longer) < 2 else 'block scales'}"


_LINEAR = Encoding(
    ".weight",
    _TYPES,
    (
        ".weight_scale_inv", ".weight_scale", ".weight_descale", ".scale", ".scale_weight", ".qscale_weight",
        ".weights_scaling_factor",
    ),
    _logical,
)  # fmt: skip
_EXPERTS = Encoding(
    "", _TYPES, ("_scale_inv", "_scale", "_descale"), _logical, ("_activation_scale", "_input_scale"), named=""
)
ENCODINGS = (_LINEAR, _EXPERTS)
