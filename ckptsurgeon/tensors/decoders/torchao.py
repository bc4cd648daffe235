"""Describes quantised tensors of torchao (their class, codes, scales and zero points), and decodes ``Int4Tensor``.

In a pickle, these are attributes of a tensor object. In safetensors, ``flatten_tensor_state_dict`` stores the parts of
``proj.weight`` as ``proj._weight_qdata`` and so on, and describes the tensor in the entry ``proj.weight`` of the file's
metadata. https://github.com/pytorch/ao/tree/main/torchao/prototype/safetensors

The codes of ``Int4Tensor`` are signed, two in a byte, the lower bits first: weight = code * scale + zero point. Scales
and zero points have the shape (groups, out), the weight (out, in).
https://github.com/pytorch/FBGEMM/blob/main/fbgemm_gpu/experimental/gen_ai/gen_ai/quantize.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ..composition import decoded, reshape
from ..dtypes import DTYPES
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ..torch_quantisers import INT4, KINDS, MX, NVFP4, SCALED, pickled_torchao
from ._decoder import EXPONENTS, Request, UndecodableError, as_exponents, groups_of

__all__ = ["DECODER"]

FLOAT4 = "float4_e2m1fn_x2"
KERNELS = {
    "Int4TilePackedTo4dTensor": "of CUDA",
    "Int4PreshuffledTensor": "of an H100",
    "Int4PlainInt32Tensor": "of Intel's XPU or an NPU",
    "Int4MarlinSparseTensor": "of CUDA",
    "Int4OpaqueTensor": "of one kind of CPU",
    "IntxOpaqueTensor": "of one kind of CPU",
    "Sparse2x4CUTLASSFloat8Tensor": "of CUDA",
    "Float8SparseTensor2x4": "of CUDA",
}
"""{class of torchao: hardware whose kernel determines the order of its stored codes, as text for messages}."""


class _TorchAO:
    """The decoder of torchao's tensors: other decoders decode the values of all classes but ``Int4Tensor``.

    ``Decoded.facts`` has ``group``, the number of inputs that share a scale. The stored tensors are the codes, the
    scale, and ``shift``, which is added to their product.
    """

    families = ("torchao",)

    def describe(self, asked: Request) -> TensorInfo:
        return _described(asked)

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        *lead, outputs, inputs = box
        groups = (*lead, groups_of(inputs, int(dict(made.facts)["group"])), outputs)
        return {"codes": (*lead, outputs, groups_of(inputs, 2)), "scale": groups, "shift": groups}

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        begin, end = box[-1]
        octets, size = arrays["codes"].view("u1"), int(dict(made.facts)["group"])
        nibbles = np.stack([octets & 15, octets >> 4], -1).reshape(*octets.shape[:-1], -1)
        values: Array = (nibbles[..., begin % 2 :][..., : end - begin] ^ np.uint8(8)).astype("<f4")
        values -= np.float32(8)  # of two's complement: the sign bit was inverted
        group = np.arange(begin, end) // size - begin // size
        scale, shift = (np.swapaxes(arrays[role].astype("<f4"), -1, -2) for role in ("scale", "shift"))
        values *= np.take(scale, group, -1)
        values += np.take(shift, group, -1)
        return values


def _described(asked: Request) -> TensorInfo:
    """Return the description of a torchao tensor's decoded weight, which names the decoder of its values.

    Raises UndecodableError if no decoder fits.
    """
    made = _weight(asked)
    if asked.codes.opaque and made.shape != asked.codes.shape:
        raise UndecodableError(
            f"the codes make a weight of shape {list(made.shape)}, but the stated shape is {list(asked.codes.shape)}"
        )
    return made


def _weight(asked: Request) -> TensorInfo:
    kind, fields, parts = _pickled(asked) if asked.codes.opaque else _in_safetensors(asked)
    codes, scale = parts.get("qdata"), parts.get("scale")
    if parts.get("act_pre_scale") is not None:
        raise UndecodableError(
            "the inputs of the layer are scaled too (act_pre_scale): the decoded weight alone would be wrong"
        )
    if kind in KERNELS:
        raise UndecodableError(
            f"torchao's class {kind} stores codes in an order that only a kernel {KERNELS[kind]} can read: "
            "the kernel's output for an identity matrix is the transposed weight"
        )
    if kind and kind not in KINDS:
        raise UndecodableError(f"no decoder knows torchao's class {kind[:60]}")
    if not kind:
        raise UndecodableError("the file does not say which torchao class the tensor has")
    for part, name in ((codes, "codes (qdata)"), (scale, "scale")):
        if part is None:
            raise UndecodableError(f"the file contains no {name} of the tensor, which torchao's class {kind} needs")
    assert codes is not None
    assert scale is not None
    if fields.get("is_swizzled_scales"):
        raise UndecodableError("the scales are stored in the order of a GPU kernel (is_swizzled_scales)")
    if codes.stride is not None:
        raise UndecodableError("the codes are not contiguous (transposed, for example)")
    if kind == INT4:
        return _int4(codes, scale, parts.get("zero_point"))
    if kind in SCALED:
        return _scaled(codes, scale, parts.get("zero_point"))
    if kind == MX and DTYPES[codes.dtype].bits == 8 and codes.dtype != "uint8":
        return _scaled(codes, as_exponents(scale), None)
    is_float4 = kind == MX and fields.get("elem_dtype") == FLOAT4 and scale.dtype in EXPONENTS
    if (is_float4 or kind == NVFP4) and codes.dtype == "uint8":
        return _fp4(codes, scale, parts.get("per_tensor_scale"))
    raise UndecodableError(f"the codes are {codes.dtype}, which no decoder knows for torchao's class {kind}")


_Described = tuple[str, Mapping[str, object], Mapping[str, TensorInfo]]
"""The name of a tensor's class, its settings, and its stored tensors by role."""


def _pickled(asked: Request) -> _Described:
    kind, attributes = pickled_torchao(asked.codes)
    parts = {name: one for name, one in attributes.items() if isinstance(one, TensorInfo)}
    fields = {name: one.removeprefix("torch.") if isinstance(one, str) else one for name, one in attributes.items()}
    return kind, fields, parts


def _in_safetensors(asked: Request) -> _Described:
    about: Any = {}
    with suppress(ValueError, RecursionError):
        about = json.loads(asked.metadata.get(asked.coded.name, ""))
    kind, fields = (about.get("_type", ""), about.get("_data")) if isinstance(about, dict) else ("", None)
    told = {name: _plain(one) for name, one in fields.items()} if isinstance(fields, dict) else {}
    parts = {end.removeprefix("._weight").removeprefix("_"): info for end, info in asked.parts.items()}
    return str(kind), told, {**parts, "qdata": asked.codes}


def _plain(stored: Any) -> object:
    """Return a setting; if it is a JSON object that describes a dtype, return the name of the dtype."""
    return str(stored.get("_data")) if isinstance(stored, dict) else stored


def _scaled(codes: TensorInfo, scale: TensorInfo, zero: TensorInfo | None) -> TensorInfo:
    """Describe codes that are plain numbers; each block of codes has a scale, and perhaps a zero point.

    Raises UndecodableError if the number of scales or zero points along a dimension does not divide the number of
    codes, or if the two have different shapes.
    """
    for one in (scale, *([zero] if zero is not None else [])):
        if len(one.shape) != len(codes.shape) or any(
            not number or size % number for size, number in zip(codes.shape, one.shape, strict=True)
        ):
            have = "scales have" if one is scale else "zero points have"
            raise UndecodableError(
                f"the {have} the shape {list(one.shape)}, which does not fit the codes {list(codes.shape)}"
            )
    if zero is not None and zero.shape != scale.shape:
        raise UndecodableError("the zero points have a different shape from the scales")
    steps = (size // number for size, number in zip(codes.shape, scale.shape, strict=True))
    facts = tuple((f"step{dim}", step) for dim, step in enumerate(steps))
    parts = (("codes", codes), ("scale", scale), *([("zero", zero)] if zero is not None else []))
    return decoded(codes.shape, Decoded(parts, "scaled", facts))


def _fp4(codes: TensorInfo, scale: TensorInfo, times: TensorInfo | None) -> TensorInfo:
    """Describe 4-bit floats, two in a byte, with a scale for each block of a row, and perhaps a global scale.

    Raises UndecodableError if the scales do not fit.
    """
    if not codes.shape:
        raise UndecodableError("the codes are a single number, not rows of codes")
    if scale.shape[:-1] != codes.shape[:-1] or not scale.shape[-1:] or not scale.shape[-1]:
        raise UndecodableError(
            f"the scales have the shape {list(scale.shape)}, but the codes {list(codes.shape)}: all but the last "
            "dimension must be equal"
        )
    columns = codes.shape[-1] * 2
    if columns % scale.shape[-1]:
        raise UndecodableError(
            f"a row has {scale.shape[-1]} scales, but {columns} columns, which is not a multiple of this number"
        )
    if times is not None and times.numel != 1:
        raise UndecodableError(f"the global scale has {times.numel:,} values, not one")
    whole = [("times", reshape(times, (1,)))] if times is not None else []
    stored = (("codes", replace(codes, dtype="uint8")), ("scale", scale), *whole)
    facts = (("block", columns // scale.shape[-1]), ("turned", 0))
    return decoded((*codes.shape[:-1], columns), Decoded(stored, "fp4", facts))


def _int4(codes: TensorInfo, scale: TensorInfo, shift: TensorInfo | None) -> TensorInfo:
    """Describe signed 4-bit integers, two in a byte, with a scale and a zero point for each group of a row.

    Raises UndecodableError if codes, scales and zero points do not fit each other.
    """
    if shift is None or shift.shape != scale.shape:
        raise UndecodableError("the tensor has no zero points, or they have a different shape from the scales")
    if codes.dtype not in ("int8", "uint8") or len(codes.shape) < 2:
        raise UndecodableError(f"the codes are {codes.dtype} {list(codes.shape)}, not rows of two codes in a byte")
    *lead, outputs, nbytes = codes.shape
    groups = scale.shape[-2] if len(scale.shape) > 1 else 0
    if scale.shape != (*lead, groups, outputs) or not groups or 2 * nbytes % groups:
        raise UndecodableError(
            f"the scales have the shape {list(scale.shape)}, which does not fit the codes {list(codes.shape)}"
        )
    stored = (("codes", replace(codes, dtype="uint8")), ("scale", scale), ("shift", shift))
    return decoded((*lead, outputs, 2 * nbytes), Decoded(stored, "torchao", (("group", 2 * nbytes // groups),)))


DECODER = _TorchAO()
