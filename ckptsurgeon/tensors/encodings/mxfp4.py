"""Recognises mxfp4: 4-bit floats in blocks of 32 with a shared exponent (OCP Microscaling Formats specification).

gpt-oss stores two codes in a byte in ``gate_up_proj_blocks`` (experts, out, blocks, 16), and the exponents in
``gate_up_proj_scales`` (experts, out, blocks); transformers decodes them to (experts, in, out). Quark and DeepSeek-V4
store bytes in ``weight`` (out, in / 2), and exponents in ``weight_scale``, ``weight_scale_inv`` or ``scale``
(out, in / 32).
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


def _blocks(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scales = parts.values()
    if len(codes.shape) < 2 or codes.shape[:-1] != scales.shape or scales.dtype not in _EXPONENTS:
        return None
    *outer, blocks, nbytes = codes.shape
    inner = blocks * nbytes * 2
    return LogicalTensor.of("mxfp4", (outer[0], inner, outer[1]) if len(outer) == 2 else (*outer, inner))


def _rows(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scale, *_ = parts.values()
    if len(codes.shape) < 2 or scale.dtype not in _EXPONENTS:
        return None
    *outer, nbytes = codes.shape
    return LogicalTensor.of("mxfp4", (*outer, nbytes * 2)) if scale.shape == (*outer, nbytes // _BLOCK_BYTES) else None


ENCODINGS = (
    Encoding("_blocks", _TYPES, ("_scales",), _blocks, named=""),
    Encoding(".blocks", _TYPES, (".scales",), _blocks, named=""),
    Encoding(".weight", _PAIRS, (".weight_scale", ".weight_scale_inv", ".scale"), _rows),
    Encoding("", _PAIRS, ("_scale_inv", "_scale"), _rows, named=""),
)
