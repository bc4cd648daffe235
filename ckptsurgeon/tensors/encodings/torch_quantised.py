"""Recognises quantised tensors whose pickle contains scale and zero point: torch's own, and torchao's.

https://docs.pytorch.org/docs/stable/quantization.html, https://github.com/pytorch/ao/tree/main/torchao/quantization
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ...util.text import listing
from ..dtypes import DTYPES
from ..info import Decoded, TensorInfo
from ..quantised.encoding import Encoding, LogicalTensor, Parts, same_shape
from ..quantised.settings import QuantisationSettings
from ..torch_quantisers import as_float

__all__ = [
    "ENCODINGS",
    "INT4",
    "KINDS",
    "MX",
    "NVFP4",
    "SCALED",
    "is_pickled",
    "notes_on_activations",
    "pickled_scale",
    "pickled_torchao",
    "stored_bytes",
]

_TYPES = frozenset(name for name, dtype in DTYPES.items() if dtype.kind == "quantized" and not dtype.block)
SCALED = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
"""The classes of torchao whose weight is (codes - zero point) * scale."""
INT4, MX, NVFP4 = "Int4Tensor", "MXTensor", "NVFP4Tensor"
KINDS = (*SCALED, INT4, MX, NVFP4)
"""The classes of torchao that this package decodes."""
_OUTWARD = frozenset(DTYPES) - {"int64"}
"""The dtypes that a pickled tensor of torchao can have: it is the dtype of the decoded weight, not of the codes."""


def pickled_torchao(info: TensorInfo) -> tuple[str, Mapping[str, object]]:
    """Return the class of a pickled tensor of torchao, and its attributes by name; ("", {}) for any other tensor."""
    if not info.opaque or len(info.parts) != 2 or not str(info.parts[0]).startswith("torchao."):
        return "", {}
    kind, attributes = info.parts
    return str(kind).rpartition(".")[2], dict(attributes) if isinstance(attributes, tuple) else {}


def is_pickled(info: TensorInfo) -> bool:
    """Return whether torch or torchao quantised a tensor: then the pickle stores the scale as a part of the tensor."""
    return bool(pickled_torchao(info)[0]) or (bool(info.opaque) and DTYPES[info.dtype].kind == "quantized")


def pickled_scale(info: TensorInfo) -> float | TensorInfo | None:
    """Return the scale, or the tensor of scales, that a pickle stores with a quantised tensor of torch or torchao.

    Returns None if neither torch nor torchao quantised the tensor, or if its scale is not in the file.
    """
    if DTYPES[info.dtype].kind == "quantized" and info.parts and isinstance(info.parts[0], tuple):
        scale: object = info.parts[0][1] if len(info.parts[0]) > 1 else None
    else:
        scale = pickled_torchao(info)[1].get("scale")
    if isinstance(scale, (int, float)):
        return as_float(scale)
    return scale if isinstance(scale, TensorInfo) else None


def notes_on_activations(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return a note on scales of activations that remain after ckpt decoded weights that torch quantised.

    The result is a list with one note, or []. Such a scale and its zero point are one number each: ``quant.scale`` and
    ``quant.zero_point``, or ``fc_input_scale_0`` and ``fc_input_zero_point_0``.
    """
    if not any(isinstance(info.made, Decoded) and info.made.encoding == "torch_quantised" for info in tensors.values()):
        return []
    found = []
    for key, info in tensors.items():
        before, name, after = key.rpartition("zero_point")
        scale = tensors.get(f"{before}scale{after}") if name and (info.dtype, info.numel) == ("int64", 1) else None
        if scale is not None and (scale.dtype, scale.numel) == ("float32", 1):
            found += [f"{before}scale{after}", key]
    said = f"only a quantised network uses them (ckpt filter --exclude leaves them out): {listing(found)}"
    return [f"scales of activations are kept, although {said}"] if found else []


def stored_bytes(info: TensorInfo) -> int:
    """Return the size of a stored tensor in bytes; for a pickled tensor of torchao, the size of its attributes.

    In files of older versions, an attribute may itself be a tensor of torchao, whose attributes are plain tensors.
    """
    if not info.parts:  # true of most tensors, of which there may be 100,000
        return info.nbytes
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
    Encoding(".weight", _TYPES, (), same_shape("quantised by torch"), (".scale", ".zero_point")),
    Encoding("", _TYPES, (), same_shape("quantised by torch"), named=""),
    Encoding("", _OUTWARD, (), _torchao, named=""),
)
"""The encodings of torch and torchao.

A quantised layer of torch.ao also stores the scale and zero point of its output: they are parts of its weight here.
"""
