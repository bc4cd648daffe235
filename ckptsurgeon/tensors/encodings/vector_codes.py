"""Recognises methods whose codes are indices into a table (QuIP#, QTIP, SqueezeLLM), and Marlin's 4-bit integers.

The endings of keys identify them without settings: plain tensors never have these endings together. See
https://github.com/Cornell-RelaxML/quip-sharp (``QuantizedLinear``), https://github.com/Cornell-RelaxML/qtip,
https://github.com/SqueezeAILab/SqueezeLLM (``QuantLinearLUT``), https://github.com/IST-DASLab/marlin (``Layer``),
https://github.com/HandH1998/QQQ (``QuantLinear``).
"""

from __future__ import annotations

from ..quantised.encoding import Encoding, LogicalTensor, Parts
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_INTEGERS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"})
_FLOATS = ("float16", "bfloat16", "float32")
_TILE = 16
_MOST_BITS = 8


def _turned(method: str, telling: str) -> Encoding:
    """Return the encoding of a method that, like QuIP#, multiplies weights with random signs before it quantises them.

    ``SU`` contains a sign for each input, ``SV`` for each output; ``telling`` is the ending of the keys of the codes.
    """

    def logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
        codes, inputs, outputs = parts[telling], parts.get(".SU"), parts.get(".SV")
        if inputs is None or outputs is None or len(codes.shape) < 2:
            return None
        if len(inputs.shape) == len(outputs.shape) == 1:
            return LogicalTensor.of(method, (outputs.numel, inputs.numel))
        return LogicalTensor(method, None, at_least=codes.numel)

    more = (".Wscale", ".codebook_id", ".had_left", ".had_right", ".rescale_WH", ".scaleWH", ".fuse_scales", ".A", ".B")
    return Encoding(telling, _INTEGERS, (".SU",), logical, (".SV", *more, ".tlut", ".rcp", ".tp_rank"))


def _lookup(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of SqueezeLLM; None if SqueezeLLM does not have such shapes.

    The shapes are: ``qweight`` (in * bits / 32, out), ``lookup_table`` (out, 2 ** bits). There may be outliers, too.
    """
    codes, table = parts[".qweight"].shape, parts[".lookup_table"].shape
    if len(codes) != 2 or len(table) != 2 or codes[1] != table[0]:
        return None
    bits = table[1].bit_length() - 1
    return (
        LogicalTensor.of(f"SqueezeLLM, {bits} bits", (codes[1], codes[0] * 32 // bits))
        if 0 < bits <= _MOST_BITS
        else None
    )


def _marlin(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    """Return the logical tensor of Marlin; None if Marlin does not have such shapes.

    The shapes are: ``B`` (in / 16, out * 2), ``s`` (groups, out). They are checked because the names are so short that
    other tensors may have them.
    """
    codes, scale = parts[".B"].shape, parts.get(".s") or parts.get(".s_channel")
    if scale is None or scale.dtype not in _FLOATS or len(codes) != 2 or len(scale.shape) != 2:
        return None
    return (
        LogicalTensor.of("Marlin, 4 bits", (scale.shape[1], codes[0] * _TILE))
        if codes[1] == scale.shape[1] * 2
        else None
    )


ENCODINGS = (
    _turned("QuIP#", ".Qidxs"),
    _turned("QTIP", ".trellis"),
    Encoding(
        ".qweight", frozenset({"int32"}), (".lookup_table",), _lookup,
        (".rows", ".cols", ".vals", ".full_rows", ".full_row_indices", ".startrows"),
    ),
    Encoding(".B", frozenset({"int32"}), (".s", ".s_channel"), _marlin, (".s_group", ".workspace", ".reduce_buffer")),
)  # fmt: skip
