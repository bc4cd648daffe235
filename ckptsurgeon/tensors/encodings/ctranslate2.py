"""Recognises the quantised weights of CTranslate2 by the slashes in its keys, as in ``encoder/conv1/weight_scale``.

CTranslate2 divides codes by their scale: one for each row with int8, one for the weight with int16. 4-bit weights of
AWQ have zero points. https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/specs/model_spec.py
(``LayerSpec._quantize``), https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/docs/quantization.md
"""

from __future__ import annotations

from ..quantised.encoding import Encoding, LogicalTensor, Parts
from ..quantised.settings import QuantisationSettings

__all__ = ["CODES", "ENCODINGS", "SCALE", "ZERO"]

CODES, SCALE, ZERO = "/weight", "/weight_scale", "/weight_zero"
"""The endings of the keys of codes, scales and zero points."""
_IN_A_WORD = 8


def _rows(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scale = parts[CODES], parts[SCALE]
    if ZERO in parts or scale.dtype != "float32" or scale.shape != codes.shape[:1] or len(codes.shape) < 2:
        return None
    return LogicalTensor.of("CTranslate2, 8 bits", codes.shape)


def _whole(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor:
    return LogicalTensor.of("CTranslate2, 16 bits", parts[CODES].shape)


def _awq(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor:
    """Return the logical tensor of AWQ's codes.

    Its shape is unknown: only config.json has the dimension of the packing.
    """
    number = parts[CODES].numel * _IN_A_WORD
    return LogicalTensor("CTranslate2, AWQ, 4 bits", number, at_least=number)


ENCODINGS = (
    Encoding(CODES, frozenset({"int8"}), (SCALE,), _rows, (ZERO,), named=CODES),
    Encoding(CODES, frozenset({"int16"}), (SCALE,), _whole, named=CODES),
    Encoding(CODES, frozenset({"int32"}), (ZERO,), _awq, (SCALE,), named=CODES),
)
