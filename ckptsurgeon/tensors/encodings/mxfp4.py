"""Recognises mxfp4: 4-bit floats in blocks of 32 with a shared exponent (OCP Microscaling Formats specification).

gpt-oss stores two codes in a byte in ``gate_up_proj_blocks`` (experts, out, blocks, 16), and the exponents in
``gate_up_proj_scales`` (experts, out, blocks); transformers decodes them to (experts, in, out). OpenAI's own files have
the same bytes in ``mlp1_weight.blocks`` and ``mlp1_weight.scales``; its code decodes them to (experts, out, in). Quark
and DeepSeek-V4 store bytes in ``weight`` (out, in / 2), and exponents in ``weight_scale``, ``weight_scale_inv`` or
``scale`` (out, in / 32).
https://github.com/openai/gpt-oss/blob/main/gpt_oss/torch/weights.py,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from ..quantised.encoding import Encoding, LogicalTensor, Parts
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_TYPES = frozenset({"uint8"})
_PAIRS = frozenset({"uint8", "int8", "float4_e2m1fn_x2"})
_EXPONENTS = ("uint8", "float8_e8m0fnu")
_BLOCK_BYTES = 16


def _turned_blocks(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    found = _blocks(parts, quantisation)
    if found is None or found.shape is None or len(found.shape) != 3:
        return found
    experts, outputs, inputs = found.shape
    return LogicalTensor.of("mxfp4", (experts, inputs, outputs))


def _blocks(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scales = parts.values()
    if len(codes.shape) < 2 or codes.shape[:-1] != scales.shape or scales.dtype not in _EXPONENTS:
        return None
    *outer, blocks, nbytes = codes.shape
    return LogicalTensor.of("mxfp4", (*outer, blocks * nbytes * 2))


def _rows(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scale, *_ = parts.values()
    if len(codes.shape) < 2 or scale.dtype not in _EXPONENTS:
        return None
    *outer, nbytes = codes.shape
    return LogicalTensor.of("mxfp4", (*outer, nbytes * 2)) if scale.shape == (*outer, nbytes // _BLOCK_BYTES) else None


ENCODINGS = (
    Encoding("_blocks", _TYPES, ("_scales",), _turned_blocks, named=""),
    Encoding(".blocks", _TYPES, (".scales",), _blocks, named=""),
    Encoding(".weight", _PAIRS, (".weight_scale", ".weight_scale_inv", ".scale"), _rows),
    Encoding("", _PAIRS, ("_scale_inv", "_scale"), _rows, named=""),
)
