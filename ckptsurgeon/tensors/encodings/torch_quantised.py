"""Recognises quantised tensors whose pickle contains scale and zero point: torch's own, and torchao's.

https://docs.pytorch.org/docs/stable/quantization.html, https://github.com/pytorch/ao/tree/main/torchao/quantization
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..dtypes import DTYPES
from ..info import TensorInfo
from ..torch_quantisers import as_float
from ._encoding import Encoding, LogicalTensor, Parts, same_shape
from ._settings import QuantisationSettings

__all__ = [
    "ENCODINGS",
    "KINDS",
    "MX",
    "NVFP4",
    "SCALED",
    "is_pickled",
    "pickled_scale",
    "pickled_torchao",
    "stored_bytes",
]

_TYPES = frozenset(name for name, dtype in DTYPES.items() if dtype.kind == "quantized" and not dtype.block)
SCALED = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
"""The classes whose weight is (codes - zero point) * scale."""
MX, NVFP4 = "MXTensor", "NVFP4Tensor"
KINDS = (*SCALED, MX, NVFP4)
"""The classes that this package decodes."""
_OUTWARD = frozenset(DTYPES) - {"int64"}
"""The dtypes that a tensor object of torchao can have: the dtype of the weight, not of its codes."""


def pickled_torchao(info: TensorInfo) -> tuple[str, Mapping[str, object]]:
    """Return the class of a pickled tensor of torchao, and its attributes by name; ("", {}) for any other tensor."""
    if not info.opaque or len(info.parts) != 2 or not str(info.parts[0]).startswith("torchao."):
        return "", {}
    kind, attributes = info.parts
    return str(kind).rpartition(".")[2], dict(attributes) if isinstance(attributes, tuple) else {}


def is_pickled(info: TensorInfo) -> bool:
    """Return whether a tensor is quantised by torch or torchao, so that its pickle contains its scale."""
    return bool(pickled_torchao(info)[0]) or (bool(info.opaque) and DTYPES[info.dtype].kind == "quantized")


def pickled_scale(info: TensorInfo) -> float | TensorInfo | None:
    """Return the scale, or the tensor of scales, that a pickle stores with a quantised tensor of torch or torchao.

    Returns None if torch and torchao did not quantise the tensor, or if its scale is not in the file.
    """
    if DTYPES[info.dtype].kind == "quantized" and info.parts and isinstance(info.parts[0], tuple):
        scale: object = info.parts[0][1] if len(info.parts[0]) > 1 else None
    else:
        scale = pickled_torchao(info)[1].get("scale")
    if isinstance(scale, (int, float)):
        return as_float(scale)
    return scale if isinstance(scale, TensorInfo) else None


def stored_bytes(info: TensorInfo) -> int:
    """Return the size of a stored tensor in bytes; for a pickled tensor of torchao, the size of its attributes.

    In older versions, an attribute may be a tensor of torchao itself, whose attributes are plain tensors.
    """
    kind, attributes = pickled_torchao(info)
    inner = [pickled_torchao(one)[1].values() or (one,) for one in _tensors(attributes.values())]
    return sum(one.nbytes for each in inner for one in _tensors(each)) if kind else info.nbytes


def _tensors(attributes: Iterable[object]) -> Iterator[TensorInfo]:
    return (one for one in attributes if isinstance(one, TensorInfo))


def _torchao(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    (info,) = parts.values()
    kind, _ = pickled_torchao(info)
    return LogicalTensor.of(f"torchao, {kind}", info.shape) if kind else None


ENCODINGS = (
    Encoding("", _TYPES, (), same_shape("quantised by torch"), named=""),
    Encoding("", _OUTWARD, (), _torchao, named=""),
)
