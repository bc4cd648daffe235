"""Recognises quantised tensors whose pickle contains scale and zero point: torch's own, and torchao's.

https://docs.pytorch.org/docs/stable/quantization.html, https://github.com/pytorch/ao/tree/main/torchao/quantization
"""

from __future__ import annotations

from ..dtypes import DTYPES, TORCH_QUANTISED
from ..quantised.encoding import Encoding, LogicalTensor, Parts, same_shape
from ..quantised.settings import QuantisationSettings
from ..torch_quantisers import pickled_torchao

__all__ = ["ENCODINGS"]

_OUTWARD = frozenset(DTYPES) - {"int64"}
"""The dtypes that a pickled tensor of torchao can have: it is the dtype of the decoded weight, not of the codes."""


def _torchao(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    (info,) = parts.values()
    kind, _ = pickled_torchao(info)
    return LogicalTensor.of(f"torchao, {kind}", info.shape) if kind else None


ENCODINGS = (
    Encoding(".weight", TORCH_QUANTISED, (), same_shape("quantised by torch"), (".scale", ".zero_point")),
    Encoding("", TORCH_QUANTISED, (), same_shape("quantised by torch"), named=""),
    Encoding("", _OUTWARD, (), _torchao, named=""),
)
"""The encodings of torch and torchao.

A quantised layer of torch.ao also stores the scale and zero point of its output: they are parts of its weight here.
"""
