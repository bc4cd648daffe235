"""Recognises 8-bit integers with scales: compressed-tensors' ``int-quantized``, and Gemma's, which may be packed.

https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from ..quantised.encoding import Encoding, LogicalTensor, Parts, same_shape, some
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_TYPES = frozenset({"int8"})
_METHOD = "int8 with scales"


def _logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scale = parts[".weight"], parts[".weight_scale"]
    return LogicalTensor.of(_METHOD, codes.shape) if scale.dtype != "float8_e8m0fnu" else None


ENCODINGS = (
    Encoding(".weight", _TYPES, (".weight_scale",), _logical, (".weight_zero_point", ".weight_g_idx", ".weight_zp")),
    Encoding(".embedding_quantized", _TYPES, (".embedding_scale",), same_shape(_METHOD)),
    Encoding(
        ".embedding_quantized", frozenset({"uint8"}), (".embedding_scale",), some("packed integers with scales")
    ),
)  # fmt: skip
