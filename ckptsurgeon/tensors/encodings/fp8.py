"""Recognises 8-bit floats with scales: one for each block, for each channel, or for the whole tensor.

The scales are called ``weight_scale_inv`` in DeepSeek-V3
(https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md), ``weight_scale`` in compressed-tensors and
ModelOpt, ``scale_weight`` in ComfyUI, ``qscale_weight`` in Mistral's models, ``weights_scaling_factor`` in
TensorRT-LLM, and ``weight_descale`` elsewhere. Without scales, 8-bit floats are plain numbers. AutoRound may store zero
points, ``weight_zp``, too: https://github.com/intel/auto-round/blob/main/auto_round/export/export_to_autoround/export_to_fp8.py
"""

from __future__ import annotations

from ..quantised.encoding import EXPERT_SCALES, Encoding, LogicalTensor, Parts
from ..quantised.settings import BLOCK_SETTINGS, QuantisationSettings

__all__ = ["ENCODINGS"]

_TYPES = frozenset({"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"})
_SHARED_EXPONENTS = ("uint8", "float8_e8m0fnu")


def _logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor:
    codes, scale, *_ = parts.values()
    if scale.dtype in _SHARED_EXPONENTS:
        return LogicalTensor.of("mxfp8", codes.shape)
    return LogicalTensor.of(f"fp8 with {_scales(codes.shape, scale.shape, quantisation)}", codes.shape)


def _scales(codes: tuple[int, ...], scale: tuple[int, ...], quantisation: QuantisationSettings) -> str:
    """Return "one scale", "channel scales" or "block scales", by the shapes or by the block size in the settings."""
    if len(codes) > 1 and len(scale) == len(codes):
        sizes = (size for name in BLOCK_SETTINGS for size in quantisation.pairs(name))
        if any(scale[-2:] == (-(-codes[-2] // rows), -(-codes[-1] // columns)) for rows, columns in sizes):
            return "block scales"
        if scale[-2:] == (1, 1):
            return "one scale"
        return "channel scales" if scale[-2:] in ((codes[-2], 1), (1, codes[-1])) else "block scales"
    if scale and scale == codes[:-2]:  # one scale for each expert
        return "one scale"
    longer = [size for size in scale if size > 1]
    if longer and longer[-1] not in codes:
        return "block scales"
    return ("one scale", "channel scales")[bool(longer)]


_LINEAR = Encoding(
    ".weight",
    _TYPES,
    (
        ".weight_scale_inv", ".weight_scale", ".weight_descale", ".scale", ".scale_weight", ".qscale_weight",
        ".weights_scaling_factor",
    ),
    _logical,
    (".weight_zero_point", ".weight_zp"),
)  # fmt: skip
_EXPERTS = Encoding(
    "", _TYPES, ("_scale_inv", "_scale", "_descale"), _logical, ("_activation_scale", "_input_scale"), named=""
)
_GRANITE = tuple(
    Encoding(codes, _TYPES, (scale,), _logical, named=codes)
    for codes, scale in zip((".input_linear.weight", ".output_linear.weight"), EXPERT_SCALES, strict=True)
)
"""The experts of Granite: transformers 5 saves their codes under the published names, their scales under its own."""
ENCODINGS = (_LINEAR, _EXPERTS, *_GRANITE)
