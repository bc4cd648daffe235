"""Reads the scales and zero points that a pickle stores with a tensor that torch or torchao quantised.

Follows ``_rebuild_qtensor`` in ``torch/_utils.py``, and https://github.com/pytorch/ao/tree/main/torchao/quantization.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from ..util.text import listing
from .dtypes import DTYPES, TORCH_QUANTISED
from .info import Decoded, TensorInfo

__all__ = [
    "INT4",
    "KINDS",
    "MX",
    "NVFP4",
    "OWN_PICKLE",
    "PACKED",
    "SCALED",
    "Quantiser",
    "UnknownQuantiserError",
    "as_float",
    "codes_of",
    "is_pickled",
    "notes_on_activations",
    "pickled_scale",
    "pickled_torchao",
    "quantiser_of",
    "stored_bytes",
]

BY_TENSOR, BY_CHANNEL = "per_tensor_affine", "per_channel_affine"
WRITTEN = (BY_TENSOR, BY_CHANNEL, "per_channel_affine_float_qparams")
"""The schemes that torch reads."""
MOST_ZERO = 1 << 31
"""The largest magnitude of a zero point."""
PACKED = "it is packed in an object that ckpt does not read"
OWN_PICKLE = "its module defines how it is pickled, which ckpt cannot read"
"""The two reasons why the values of a tensor inside an object of a layer or module cannot be read."""
SCALED = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
"""The classes of torchao whose weight is (codes - zero point) * scale."""
INT4, MX, NVFP4 = "Int4Tensor", "MXTensor", "NVFP4Tensor"
KINDS = (*SCALED, INT4, MX, NVFP4)
"""The classes of torchao that this package decodes."""


class UnknownQuantiserError(ValueError):
    """The parameters of a quantised tensor are missing, or are not valid."""


@dataclass(frozen=True)
class Quantiser:
    """The parameters of a tensor that torch quantised: a value is (code - ``zero``) * ``scale``.

    Both are numbers if all elements share them. Otherwise they are one-dimensional tensors with a number for each
    channel, and ``axis`` is the dimension of the channels.
    """

    scheme: str
    scale: float | TensorInfo
    zero: int | TensorInfo
    axis: int | None = None


def quantiser_of(info: TensorInfo) -> Quantiser:
    """Return the parameters of a tensor that torch quantised; raises UnknownQuantiserError if they are not valid."""
    params = info.parts[0] if info.parts else ()
    if info.opaque == PACKED:
        raise UnknownQuantiserError(PACKED)
    if info.storage is None or not isinstance(params, tuple) or not params:
        raise UnknownQuantiserError("the scale is not known")
    scheme, *given = (str(params[0]).removeprefix("torch."), *params[1:])
    if scheme == BY_TENSOR and len(given) == 2:
        return _by_tensor(*given)
    if scheme.startswith(BY_CHANNEL) and len(given) == 3:
        return _by_channel(info.shape, scheme, *given)
    is_known = scheme == BY_TENSOR or scheme.startswith(BY_CHANNEL)
    fault = f"has {len(given)} parameters" if is_known else "is unknown"
    raise UnknownQuantiserError(f"the scheme {scheme[:40]!r} {fault}")


def _by_tensor(scale: Any, zero: Any) -> Quantiser:
    if type(scale) not in (int, float) or type(zero) is not int or abs(zero) > MOST_ZERO:
        raise UnknownQuantiserError("the scale or the zero point is not a valid number")
    return Quantiser(BY_TENSOR, scale, zero)


def _by_channel(shape: tuple[int, ...], scheme: str, scale: Any, zero: Any, axis: Any) -> Quantiser:
    if type(axis) is not int or not 0 <= axis < len(shape):
        raise UnknownQuantiserError("the channels are along a dimension that the tensor does not have")
    for one in (scale, zero):
        if not isinstance(one, TensorInfo) or one.shape != (shape[axis],):
            raise UnknownQuantiserError("the scales and zero points are not tensors with a number for each channel")
    return Quantiser(scheme, scale, zero, axis)


def codes_of(info: TensorInfo) -> TensorInfo | None:
    """Return the description of a tensor that torch quantised, but with ``opaque`` empty: its codes can then be copied.

    The dtype stays the same. Returns None for a tensor that torch did not quantise, and for invalid parameters: then
    the tensor cannot be copied.
    """
    if not info.opaque or info.dtype not in TORCH_QUANTISED:
        return None
    try:
        quantiser = quantiser_of(info)
    except UnknownQuantiserError:
        return None
    scale, zero = quantiser.scale, quantiser.zero
    if quantiser.scheme not in WRITTEN or type(scale) is int:  # torch stores floats
        return None
    if any(isinstance(one, TensorInfo) and one.opaque for one in (scale, zero)):
        return None
    return replace(info, opaque="", parts=())


def as_float(scale: float) -> float:
    """Return a number from a pickle as a float; an integer too large for a float becomes infinite."""
    try:
        return float(scale)
    except OverflowError:
        return inf if scale > 0 else -inf


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
