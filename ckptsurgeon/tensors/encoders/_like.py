"""Rounds a tensor to codes as another quantised tensor has them: of the same encoding, under the same settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..composition import reshape
from ..decoders._decoder import Request, decoded_weight
from ..dtypes import DTYPES
from ..encodings._encoding import ACTIVATIONS
from ..info import Decoded, Encoded, TensorInfo
from ._encoder import part_shape
from ._scale_dtypes import EXPONENTS
from .fp8 import LARGEST
from .nvfp4 import LARGEST_SCALE

__all__ = ["UnencodableError", "encoded_like"]

OF_WEIGHTS = (".weight_amax",)
"""The endings in ``ACTIVATIONS`` that are of weights after all; the others are about inputs and outputs, and stay."""
SHAPE = "weight_shape"


class UnencodableError(Exception):
    """Raised for a quantised tensor in whose encoding no other tensor can be stored; says why."""


def encoded_like(weight: TensorInfo, asked: Request) -> dict[str, TensorInfo]:
    """Return the tensors that store ``weight`` in the encoding of the quantised tensor ``asked``, by key endings.

    These are the endings, dtypes and shapes of that tensor's own parts, so that the settings in config.json describe
    them as before: the size of a block or a group, scales for channels or for all, zero points or none, the bits of
    packed codes. ``weight`` is any floating tensor of the shape that ``asked`` stands for, stored or derived (what
    ``decoded_weight`` gives, or an edit of it). Its values are rounded to nearest, with scales from the least and the
    greatest value of each group, and are read when a part is (``encode`` in ``_encoder``, with a ``read`` function of
    the caller, which may compute them). Scales of a layer's inputs stay as they are. Codes of a tensor that nothing
    changed are better copied: the largest integer is not the end of the range, so that integers shrink a little each
    time that they are decoded and rounded; small floats do not.

    Raises UnencodableError for other encodings (GPTQ, AWQ, bitsandbytes, MLX, an order of columns), UndecodableError
    for a tensor that cannot be decoded, either.
    """
    info = decoded_weight(asked)
    made = info.made
    assert isinstance(made, Decoded)
    if weight.shape != info.shape:
        raise UnencodableError(f"it has the shape {list(weight.shape)}, and the quantised tensor {list(info.shape)}")
    if len(info.shape) < 2:
        raise UnencodableError("it has one dimension")
    template = _template(weight, asked, made)
    return {end: _part(template, end, stored, asked) for end, stored in asked.parts.items()}


def _template(weight: TensorInfo, asked: Request, made: Decoded) -> Encoded:
    """Return how the codes are computed, by what decodes them."""
    parts, facts = dict(made.parts), dict(made.facts)
    if "scale" not in parts:
        raise UnencodableError(f"no encoder knows {asked.coded.method} as it is stored here")
    scale, codes = parts["scale"], asked.codes
    encoding, more = "", list[tuple[str, float]]()
    zero = [("asymmetric", 1.0)] if "zero" in parts else []
    steps = (*(1 for _ in weight.shape[1:]), int(facts.get("group", facts.get("block", 0))))
    if made.encoding == "scaled":
        steps = tuple(max(int(facts[f"step{dim}"]), 1) for dim in range(len(weight.shape)))
        if codes.dtype in LARGEST and not zero:
            encoding, more = "fp8", _of_floats(codes, scale, asked)
        elif codes.dtype == "int8" and scale.dtype != EXPONENTS:
            encoding, more = "int8", [("bits", 8.0), *zero]
    elif made.encoding == "packed":
        encoding, more = "packed", [("bits", facts["bits"]), *zero, *([("zeros_packed", 1.0)] if zero else [])]
    elif made.encoding == "fp4" and not facts["turned"] and ".weight_packed" in asked.parts:
        if "over" in parts and scale.dtype == "float8_e4m3fn":
            encoding, more = "nvfp4", [("over", float(LARGEST_SCALE) * 6)]
        elif scale.dtype == EXPONENTS and steps[-1] == 32:
            encoding = "mxfp4"
    if not encoding:
        raise UnencodableError(f"no encoder knows {asked.coded.method} as it is stored here")
    if "order" in parts or "bias" in parts or "times" in facts or "times" in parts:
        raise UnencodableError("its columns are in another order, or it has other scales than can be computed")
    return Encoded((weight,), encoding, "codes", steps, scale.dtype, tuple(more), made.name)


def _of_floats(codes: TensorInfo, scale: TensorInfo, asked: Request) -> list[tuple[str, float]]:
    """Return the facts of 8-bit floats; those of DeepSeek's blocks are computed as transformers does."""
    blocks = ".weight_scale_inv" in asked.parts and scale.dtype == "float32" and scale.numel > 1
    return [("top", LARGEST[codes.dtype]), *([("reciprocal", 1.0)] if blocks else [])]


def _part(template: Encoded, end: str, stored: TensorInfo, asked: Request) -> TensorInfo:
    """Return the part of the new tensor that has the ending ``end``; ``stored`` is that of the old one."""
    name = end.rpartition(".")[2]
    role = next((role for role, words in _roles(asked) if name in words), "")
    if asked.coded.parts[end] == asked.coded.codes:
        role = "codes"
    if role == "":
        if f".{name}" in ACTIVATIONS and f".{name}" not in OF_WEIGHTS:
            return stored
        raise UnencodableError(f"nothing computes its part {name}")
    own = replace(template, role=role)
    made = TensorInfo(stored.dtype, part_shape(own, stored.shape), made=own)
    if made.numel != stored.numel or DTYPES[stored.dtype].bits != DTYPES[made.dtype].bits:
        raise UnencodableError(f"its part {name} has another shape than its scales")
    return reshape(made, stored.shape)


def _roles(asked: Request) -> Iterator[tuple[str, tuple[str, ...]]]:
    scales = (
        "weight_scale_inv", "weight_scale", "weight_descale", "scale_weight", "qscale_weight", "scale",
        "weights_scaling_factor", "_scale_inv", "_scale", "_descale",
    )  # fmt: skip
    yield "scale", scales
    yield "zero", ("weight_zero_point",)
    yield "whole", ("weight_global_scale",)
    yield "shape", (SHAPE,)
