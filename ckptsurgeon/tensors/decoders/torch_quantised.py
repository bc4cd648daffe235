"""Decodes torch's own quantised tensors: integers with a scale and a zero point for the tensor, or for each channel.

The pickle stores the scale and zero point with the codes (https://docs.pytorch.org/docs/stable/quantization.html).
Values are computed as torch's ``dequantize`` computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite, prod

import numpy as np

from ..composition import decoded
from ..dtypes import DTYPES
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box, box_shape
from ..torch_quantisers import UnknownQuantiserError, as_float, quantiser_of
from ._decoder import Request, UndecodableError
from ._odd_scales import not_finite

__all__ = ["DECODER"]

INTEGERS = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
"""{quantised dtype: integer dtype of its codes}, for the dtypes with one code per element."""


class _Torch:
    """The decoder of torch's quantised tensors.

    ``Decoded.facts`` has ``scale`` and ``zero`` if all elements share them, else ``axis``, the dimension of the
    channels. For codes of less than a byte, it also has ``bits`` (of a code), and ``size0``, ``size1`` and so on (the
    shape of the weight); the lowest bits of a byte come first.
    """

    families = ("quantised",)

    def describe(self, asked: Request) -> TensorInfo:
        codes = asked.codes
        try:
            found = quantiser_of(codes)
        except UnknownQuantiserError as error:
            raise UndecodableError(str(error)) from None
        parts, numbers = [("codes", _integers(codes))], list[tuple[str, float]]()
        for role, one in (("scale", found.scale), ("zero", found.zero)):
            if isinstance(one, TensorInfo):
                parts.append((role, one))
            else:
                numbers.append((role, as_float(one)))
        axis = () if found.axis is None else (("axis", found.axis),)
        return decoded(codes.shape, Decoded(tuple(parts), "torch_quantised", (*numbers, *axis, *_bits(codes))))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        facts, info = dict(made.facts), made.of[0]
        if "bits" not in facts:
            codes = box
        else:
            first, last = _elements(made, box)
            each = 8 // int(facts["bits"])
            codes = ((first // each, min(-(-last // each), info.numel)),)
        channels: Box = (box[int(facts["axis"])],) if "axis" in facts else ()
        return {"codes": codes, **({"scale": channels, "zero": channels} if channels else {})}

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        facts = dict(made.facts)
        if not isfinite(facts.get("scale", 0)):
            raise not_finite(made)
        codes = arrays["codes"] if "bits" not in facts else _unpacked(made, arrays["codes"], box)
        if "axis" not in facts:
            values: Array = (codes - facts["zero"]).astype("<f4")
            values *= np.float32(facts["scale"])
            return values
        shape = [1] * len(box)
        shape[int(facts["axis"])] = -1
        scale, zero = arrays["scale"].reshape(shape), arrays["zero"].reshape(shape)
        wide = "<f4" if zero.dtype.kind == "f" else "<f8"  # torch computes per_channel_affine_float_qparams in float32
        values = codes.astype(wide)
        values -= zero.astype(wide)
        values *= scale.astype(wide)
        return values.astype("<f4", copy=False)


def _bits(codes: TensorInfo) -> tuple[tuple[str, float], ...]:
    return () if codes.dtype in INTEGERS else (("bits", DTYPES[codes.dtype].bits), *_sizes(codes))


def _sizes(codes: TensorInfo) -> tuple[tuple[str, float], ...]:
    return tuple((f"size{dim}", size) for dim, size in enumerate(codes.shape))


def _integers(codes: TensorInfo) -> TensorInfo:
    """Return the codes as a tensor of integers; for codes of less than a byte, a vector of bytes that contain them.

    Raises UndecodableError if codes of less than a byte are not contiguous.
    """
    if codes.dtype in INTEGERS:
        return replace(codes, dtype=INTEGERS[codes.dtype], opaque="", parts=())
    if codes.stride is not None:
        raise UndecodableError("the codes of less than a byte are not contiguous")
    return replace(codes, dtype="uint8", shape=(codes.nbytes,), opaque="", parts=())


def _elements(made: Decoded, box: Box) -> tuple[int, int]:
    """Return the range of flat indices (row-major) of the codes in all rows that ``box`` contains or cuts."""
    inner = prod(int(size) for name, size in made.facts if name.startswith("size") and name != "size0")
    return (box[0][0] * inner, box[0][1] * inner) if box else (0, 1)


def _unpacked(made: Decoded, packed: Array, box: Box) -> Array:
    facts = dict(made.facts)
    bits, (first, last) = int(facts["bits"]), _elements(made, box)
    each = 8 // bits
    codes = packed[:, None] >> np.arange(0, 8, bits, dtype="u1") & np.uint8((1 << bits) - 1)
    rows = codes.reshape(-1)[first % each :][: last - first].reshape(
        *box_shape(box[:1]), *(int(facts[f"size{dim}"]) for dim in range(1, len(box)))
    )
    part: Array = rows[tuple([slice(None), *(slice(*span) for span in box[1:])][: len(box)])]
    return part


DECODER = _Torch()
