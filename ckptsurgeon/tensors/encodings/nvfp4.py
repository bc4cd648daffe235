"""Recognises NVIDIA's nvfp4: 4-bit floats in blocks of 16, each with an 8-bit float as scale, and a global scale.

ModelOpt stores ``weight``, ``weight_scale`` and ``weight_scale_2`` (https://github.com/NVIDIA/Model-Optimizer),
compressed-tensors stores ``weight_packed``, ``weight_scale`` and ``weight_global_scale``. Two codes are in a byte.

Without a global scale, bytes as scales are exponents (mxfp4), unless AutoRound's ``data_type`` names one of two
encodings with the same keys and shapes: 4-bit integers (``mx_int``), or nvfp4 with unsigned e5m3 scales
(``nvfp4_v2``). No decoder knows these two.
https://github.com/intel/auto-round/blob/main/auto_round/export/export_to_autoround/qlinear_int.py,
https://github.com/intel/auto-round/blob/main/auto_round/export/export_to_autoround/qlinear_fp.py
"""

from __future__ import annotations

from ..quantised.encoding import Encoding, LogicalTensor, Parts
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_TYPES = frozenset({"uint8", "float4_e2m1fn_x2"})
_SIX_BITS = 24
"""The bytes in a block of mxfp6, which has 32 codes of 6 bits: a tensor with such blocks is not nvfp4."""
_SCALES = ("float8_e4m3fn", "uint8", "float8_e8m0fnu")
_DATA_TYPES = {"mx_int": "mxint4", "nvfp4_v2": "nvfp4_e5m3"}
"""{beginning of AutoRound's ``data_type``: encoding of codes whose scales are bytes}."""


def _logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scale = next(iter(parts.values())), parts.get(".weight_scale")
    if scale is None or scale.dtype not in _SCALES or not codes.shape:
        return None
    method = "nvfp4" if scale.dtype == _SCALES[0] else _of_bytes(quantisation)
    if scale.shape and codes.shape[-1] == _SIX_BITS * scale.shape[-1]:
        return None
    return LogicalTensor.of(method, (*codes.shape[:-1], codes.shape[-1] * 2))


def _of_bytes(quantisation: QuantisationSettings) -> str:
    """Return the encoding of codes whose scales are bytes, according to AutoRound's settings."""
    told = (
        method
        for text in quantisation.texts("data_type")
        for begin, method in _DATA_TYPES.items()
        if text.lower().startswith(begin)
    )
    return next(told, "mxfp4")


def _pairs(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of transformers' own layout of nvfp4, with scales in the order of a GPU kernel."""
    *outer, nbytes = parts[".weight"].shape or (0,)
    return LogicalTensor.of("nvfp4", (*outer, nbytes * 2))


ENCODINGS = (
    Encoding(".weight", _TYPES, (".weight_scale_2",), _logical, (".weight_scale",)),
    Encoding(".weight", _TYPES, (".weight_sf",), _pairs, (".weight_sf_rowmajor", ".weight_global_scale")),
    Encoding(".weight_packed", _TYPES, (".weight_scale",), _logical, (".weight_global_scale",)),
)
