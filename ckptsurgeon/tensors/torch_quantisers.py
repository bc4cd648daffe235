"""Reads the parameters that a pickle stores with a tensor that torch quantised: its scales and zero points.

Follows ``_rebuild_qtensor`` in ``torch/_utils.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

from .dtypes import TORCH_QUANTISED
from .info import TensorInfo

__all__ = ["OWN_PICKLE", "PACKED", "Quantiser", "UnknownQuantiserError", "as_float", "codes_of", "quantiser_of"]

BY_TENSOR, BY_CHANNEL = "per_tensor_affine", "per_channel_affine"
WRITTEN = (BY_TENSOR, BY_CHANNEL, "per_channel_affine_float_qparams")
"""The schemes that torch reads."""
MOST_ZERO = 1 << 31
"""The largest magnitude of a zero point."""
PACKED = "it is packed in an object that ckpt does not read"
OWN_PICKLE = "its module defines how it is pickled, which ckpt cannot read"
"""The two reasons why the values of a tensor inside an object of a layer or module cannot be read."""


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
    raise UnknownQuantiserError(f"the scheme {scheme[:40]!r} is unknown")


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
