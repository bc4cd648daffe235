"""Rounds a tensor to codes as another quantised tensor has them: of the same encoding, under the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..composition import reshape
from ..decoders._decoder import Request, decoded_weight
from ..encodings._encoding import ACTIVATIONS
from ..info import Decoded, Encoded, TensorInfo
from ._encoder import is_computed_in, part_shape
from ._templates import UnencodableError, template_of

__all__ = ["UnencodableError", "encoded_like"]


def encoded_like(weight: TensorInfo, asked: Request) -> dict[str, TensorInfo]:
    """Return the tensors that store ``weight`` in the encoding of the quantised tensor ``asked``, by key endings.

    These are the endings, dtypes and shapes of that tensor's own parts, so that the settings in config.json describe
    them as before: the size of a block or a group, scales for channels or for all, zero points or none, the bits of
    packed codes. ``weight`` is any floating tensor of the shape that ``asked`` stands for, stored or derived (what
    ``decoded_weight`` gives, or an edit of it). Its values are rounded to nearest, with scales from the least and the
    greatest value of each group, and are read when a part is (``encode`` in ``_encode``, with a ``read`` function of
    the caller, which may compute them). Parts that describe the encoding, and scales of a layer's inputs, are those
    of ``asked`` itself. Codes of a tensor that nothing changed are better copied: the largest integer is not the end
    of the range, so that integers shrink a little each time that they are decoded and rounded; small floats do not.

    Raises UnencodableError for other encodings, UndecodableError for a tensor that cannot be decoded, either.
    """
    info = decoded_weight(asked)
    made = info.made
    assert isinstance(made, Decoded)
    if weight.shape != info.shape:
        raise UnencodableError(f"it has the shape {list(weight.shape)}, and the quantised tensor {list(info.shape)}")
    if len(info.shape) < 2:
        raise UnencodableError("it has one dimension")
    found = template_of(asked, made, info.shape)
    scale = dict(made.parts).get("scale")
    dtype = scale.dtype if scale is not None else ""
    template = Encoded((weight,), found.encoding, "codes", found.steps, dtype, found.facts, made.name)
    return {end: _part(template, end, stored, asked) for end, stored in asked.parts.items()}


def _part(template: Encoded, end: str, stored: TensorInfo, asked: Request) -> TensorInfo:
    """Return the part of the new tensor that has the ending ``end``; ``stored`` is that of the old one."""
    name = end.rpartition(".")[2]
    role = _ROLES.get(name, "")
    if asked.coded.parts[end] == asked.coded.codes:
        role = "codes"
    if role == "":
        if name in STAYING or (f".{name}" in ACTIVATIONS and f".{name}" not in OF_WEIGHTS):
            return stored
        raise UnencodableError(f"nothing computes its part {name}")
    own = replace(template, role=role)
    made = TensorInfo(stored.dtype, part_shape(own, stored.shape), made=own)
    if not is_computed_in(own, stored.dtype):
        raise UnencodableError(f"its part {name} is {stored.dtype}")
    if made.numel != stored.numel:
        raise UnencodableError(f"its part {name} has another shape than its scales")
    return reshape(made, stored.shape)


OF_WEIGHTS = (".weight_amax",)
"""The endings in ``ACTIVATIONS`` that are of weights after all; the others are about inputs and outputs, and stay."""
STAYING = ("g_idx", "weight_format", "quant_map", "nested_quant_map", "bitsandbytes__nf4", "bitsandbytes__fp4")
"""The last words of endings of parts that describe the encoding, not the values."""
_ROLES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "weight_scale_inv", "weight_scale", "weight_descale", "scale_weight", "qscale_weight", "scale",
            "weights_scaling_factor", "_scale_inv", "_scale", "_descale", "absmax", "scales", "_scales", "SCB",
        ),
        "scale",
    ),
    "nested_absmax": "nested", "biases": "bias", "weight_zero_point": "zero", "weight_global_scale": "whole",
    "weight_scale_2": "whole", "qzeros": "zero",
    "weight_shape": "shape",
}  # fmt: skip
"""The roles of parts, by the last words of their endings."""
