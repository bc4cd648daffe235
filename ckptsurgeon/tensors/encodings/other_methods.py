"""Recognises encodings whose codes this package copies but cannot decode.

The names of keys are from the packages of these methods, and from their integrations in transformers
(https://huggingface.co/docs/transformers/main/quantization/overview).
"""

from __future__ import annotations

import math

from ..quantised.contradictions import BYTES
from ..quantised.encoding import Encoding, LogicalTensor, Parts, same_shape, some
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_INTEGERS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32"})
_BYTES = _INTEGERS | {"float8_e4m3fn", "float8_e5m2"}
_SCALES = ("bfloat16", "float16", "float32")
_TILE = 16
_OF_QUANTO = (".input_scale", ".output_scale")
"""The endings of scales of activations, which quanto saves with each quantised layer."""


def _aqlm(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of AQLM; None if AQLM does not have such shapes.

    The shapes are: ``codes`` (out groups, in groups, codebooks); ``codebooks`` (codebooks, entries, outputs in a group,
    inputs in a group).
    """
    codes, books = parts[".codes"].shape, parts[".codebooks"].shape
    if len(codes) != 3 or len(books) != 4:
        return None
    return LogicalTensor.of("AQLM", (codes[0] * books[2], codes[1] * books[3]))


def _bytes(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of BitNet, or of packed integers with a scale for each row.

    BitNet has one scale, and a byte contains four values (-1, 0 or 1) along the outputs. In ComfyUI's files, a byte may
    also be one 8-bit number: only the value of the tensor ``comfy_quant``, which is not in the header, tells which.
    """
    codes, scale = parts[".weight"], parts[".weight_scale"]
    if scale.dtype not in _SCALES or len(codes.shape) < 2:
        return None
    if scale.numel == 1 and ".comfy_quant" not in parts:
        return LogicalTensor.of("BitNet", (codes.shape[0] * 4, *codes.shape[1:]))
    return LogicalTensor(BYTES, None, at_least=codes.numel)


def _exl3(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of EXL3, from ``trellis`` (in tiles, out tiles, words of a tile)."""
    rows, columns = (*parts[".trellis"].shape, 0, 0)[:2]
    return LogicalTensor.of("EXL3", (columns * _TILE, rows * _TILE))


def _exl2(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of EXL2, from ``q_weight`` (words, out) with mixed bits.

    ``q_invperm`` or ``q_perm`` has an entry for each input.
    """
    order = parts.get(".q_invperm") or parts.get(".q_perm")
    codes = parts[".q_weight"].shape
    if order is None or len(codes) != 2:
        return LogicalTensor("EXL2", None, at_least=math.prod(codes) * 4)
    return LogicalTensor.of("EXL2", (codes[1], order.numel))


def _higgs(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of HIGGS, from ``weight`` (out * bits / 16, in) and ``scales`` (out, groups)."""
    codes, scales = parts[".weight"], parts.get(".scales")
    if scales is None or len(codes.shape) != 2 or len(scales.shape) != 2:
        return LogicalTensor("HIGGS", None, at_least=codes.numel)
    return LogicalTensor.of("HIGGS", (scales.shape[0], codes.shape[1]))


def _quanto(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of quanto, with one code for each parameter; with ``_shift``, codes are packed."""
    is_packed = any(end.endswith("._shift") for end in parts)
    return (some if is_packed else same_shape)("Quanto")(parts, quantisation)


def _torchao(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of torchao, with one 8-bit float for each parameter; integers may be packed."""
    is_float = next(iter(parts.values())).dtype.startswith("float8")
    return (same_shape if is_float else some)("torchao")(parts, quantisation)


def _spqr(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of SpQR; its number of parameters cannot be determined from the headers."""
    return LogicalTensor("SpQR", None, at_least=parts[".dense_weights"].numel)


def _bitmask(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of weights that compressed-tensors stored as sparse.

    ``compressed`` has the values that are not zero, and ``bitmask`` their positions in the weight. The shapes of the
    two do not determine the number of parameters: it is only known that it is not less than the number of values.
    """
    return LogicalTensor("sparse with a bitmask", None, at_least=parts[".compressed"].numel)


ENCODINGS = (
    Encoding(".codes", _INTEGERS, (".codebooks",), _aqlm, (".scales",)),
    Encoding(".weight", frozenset({"uint8"}), (".weight_scale",), _bytes),
    Encoding(".weight", frozenset({"int8"}), (".weight_scales",), same_shape("EETQ int8")),
    Encoding(".trellis", _INTEGERS, (".suh", ".su"), _exl3, (".suh", ".svh", ".su", ".sv", ".mcg", ".mul1")),
    Encoding(
        ".q_weight", _INTEGERS, (".q_scale",), _exl2,
        (".q_scale_max", ".q_groups", ".q_group_map", ".q_invperm", ".q_perm"),
    ),
    Encoding(
        ".W_q", _INTEGERS, (".scale",), some("HQQ"),
        (".zero", ".shape", ".nbits", ".group_size", ".axis", ".packing", ".view_as_float", ".optimize", ".round_zero"),
    ),
    Encoding(
        ".W_q", _INTEGERS, (".meta.scale", ".meta.scale_q"), some("HQQ"),
        (".meta.zero", ".meta.zero_q", ".meta.shape", ".meta.nbits", ".meta.group_size", ".meta.axis"),
    ),
    Encoding(".weight", _INTEGERS, (".tables",), _higgs, (".scales", ".tables2")),
    Encoding(
        ".indices", _INTEGERS, (".centroids.weight",), some("VPTQ"),
        (
            ".res_centroids.weight", ".weight_scale", ".weight_bias", ".perm", ".outlier_indices",
            ".outlier_centroids.weight",
        ),
    ),
    Encoding(
        ".row_offsets", frozenset({"int32"}), (".dense_weights",), _spqr, (".col_vals", ".in_perm"),
        codes=".dense_weights",
    ),
    Encoding(
        ".bitmask", frozenset({"uint8"}), (".compressed",), _bitmask, (".shape", ".row_offsets", ".weight_scale"),
        codes=".compressed",
    ),
    Encoding(".weight._data._data", _BYTES, (".weight._scale",), some("Quanto"), (".weight._shift", *_OF_QUANTO)),
    Encoding(".weight._data", _BYTES, (".weight._scale",), _quanto, (".weight._shift", *_OF_QUANTO)),
    Encoding("._data._data", _BYTES, ("._scale",), some("Quanto"), ("._shift",), named=""),
    Encoding("._data", _BYTES, ("._scale",), _quanto, ("._shift",), named=""),
    Encoding(
        "._weight_qdata", _BYTES, ("._weight_scale", "._weight_scale_and_zero"), _torchao,
        (
            "._weight_zero_point", "._weight_act_pre_scale", "._weight_per_tensor_scale", "._weight_act_quant_scale",
            "._weight_act_quant_zero_point", "._weight_act_per_tensor_scale",
        ),
    ),
    Encoding(
        "_qdata", _BYTES, ("_scale", "_scale_and_zero"), _torchao,
        (
            "_zero_point", "_act_pre_scale", "_per_tensor_scale", "_act_quant_scale", "_act_quant_zero_point",
            "_act_per_tensor_scale",
        ),
        named="",
    ),
)  # fmt: skip
