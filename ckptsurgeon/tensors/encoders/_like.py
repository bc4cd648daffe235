"""Quantises a tensor in the same encoding, and with the same settings, as an existing quantised tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..composition import reshape
from ..decoders._decoder import Request, decoded_weight
from ..info import Decoded, Encoded, TensorInfo
from ..quantised.encoding import ACTIVATIONS, EXPERT_SCALES
from ._encoder import is_computed_in, part_shape
from ._templates import UnencodableError, template_of

__all__ = ["UnencodableError", "encoded_like"]


def encoded_like(weight: TensorInfo, asked: Request) -> dict[str, TensorInfo]:
    """Return {key ending: stored tensor} for ``weight`` in the encoding of the existing quantised tensor ``asked``.

    The returned tensors have the endings, dtypes and shapes of the stored tensors of ``asked`` (but a ``weight_shape``
    that was cast to floats becomes int64). So the settings in
    config.json (block and group sizes, zero points, bits and so on) stay correct. Stored tensors that describe the
    encoding, and scales of a layer's inputs, are taken from ``asked``.

    ``weight`` is a floating-point tensor, stored or computed, with the shape of the decoded weight of ``asked``. Its
    values are rounded to nearest, with scales from the minimum and the maximum of each group. No value is read here:
    ``encode`` in ``_encode`` computes the values of each returned tensor.

    If nothing changed a weight, copy its codes instead: integers shrink a little each time that they are decoded and
    rounded again, because the largest integer is not the end of the range. Small floats do not shrink.

    Raises UnencodableError if no encoder can make one of the stored tensors, or if ``weight`` has another shape;
    UndecodableError if ``asked`` cannot be decoded.
    """
    info = decoded_weight(asked)
    made = info.made
    assert isinstance(made, Decoded)
    if weight.shape != info.shape:
        raise UnencodableError(
            f"the new weight has the shape {list(weight.shape)}, but the quantised tensor has {list(info.shape)}"
        )
    if len(info.shape) < 2:
        raise UnencodableError("the tensor has fewer than two dimensions")
    found = template_of(asked, made, info.shape)
    scale = dict(made.parts).get("scale")
    dtype = scale.dtype if scale is not None else ""
    order = [part for role, part in made.parts if role == "order" and dict(found.facts).get("ordered")]
    template = Encoded((weight, *order), found.encoding, "codes", found.steps, dtype, found.facts, made.name)
    return {end: _part(template, end, stored, asked) for end, stored in asked.parts.items()}


def _part(template: Encoded, end: str, stored: TensorInfo, asked: Request) -> TensorInfo:
    """Return the new tensor with the key ending ``end``, which replaces ``stored``, a stored tensor of ``asked``.

    Raises UnencodableError if no encoder can compute it.
    """
    name = end.rpartition(".")[2]
    role = _ROLES.get(name, "")
    if asked.coded.parts[end] == asked.coded.codes:
        role = "codes"
    if role == "":
        if name in STAYING or (f".{name}" in ACTIVATIONS and f".{name}" not in OF_WEIGHTS):
            return stored
        raise UnencodableError(f"no encoder is known for its stored tensor {name}")
    own = replace(template, role=role)
    # Loaders accept no shape that a cast of all tensors changed to floats.
    dtype = "int64" if role == "shape" and stored.dtype not in ("int64", "int32") else stored.dtype
    made = TensorInfo(dtype, part_shape(own, stored.shape), made=own)
    if not is_computed_in(own, dtype):
        raise UnencodableError(f"no encoder computes the stored tensor {name} as {dtype}")
    if made.numel != stored.numel:
        raise UnencodableError(f"the stored tensor {name} has a shape that does not fit the weight")
    return reshape(made, stored.shape)


OF_WEIGHTS = (".weight_amax",)
"""Endings in ``ACTIVATIONS`` whose tensors depend on the weight; tensors with other endings in it are copied."""
STAYING = (
    "g_idx",
    "weight_g_idx",
    "weight_format",
    "quant_map",
    "nested_quant_map",
    "bitsandbytes__nf4",
    "bitsandbytes__fp4",
)
"""Stored tensors whose endings have one of these last words are copied: they describe the encoding, not the values."""
_ROLES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "weight_scale_inv", "weight_scale", "weight_descale", "scale_weight", "qscale_weight", "scale",
            "weights_scaling_factor", "_scale_inv", "_scale", "_descale", "absmax", "scales", "_scales", "SCB",
            *(end.rpartition(".")[2] for end in EXPERT_SCALES),
        ),
        "scale",
    ),
    "nested_absmax": "nested", "biases": "bias", "weight_zero_point": "zero", "weight_global_scale": "whole",
    "weight_scale_2": "whole", "qzeros": "zero",
    "weight_shape": "shape",
}  # fmt: skip
"""{last word of an ending: role of the stored tensor}."""
