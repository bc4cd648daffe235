"""Recognises GPTQ and AWQ: integers of few bits in groups, packed into 32-bit words.

Both use the same endings of keys, but different shapes. GPTQ packs along the inputs: ``qweight`` is (in * bits / 32,
out), ``scales`` (groups, out), ``qzeros`` (groups, out * bits / 32), ``g_idx`` (in). AWQ packs along the outputs:
``qweight`` is (in, out * bits / 32). https://github.com/ModelCloud/GPTQModel, https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

from ..quantised.encoding import Encoding, LogicalTensor, Parts
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_GEMV_BITS = 4
_MOST = 8
_LONGEST = 1024


def _logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scales = parts[".qweight"].shape, parts[".scales"].shape
    if len(codes) != 2 or len(scales) != 2 or not all((*codes, *scales)):
        return None
    if scales[1] == codes[1]:
        return _gptq(parts, codes, scales[0], quantisation)
    if scales[0] == codes[0]:  # AWQ's layout for matrix-vector products (gemv), which is for 4 bits only
        return LogicalTensor.of(f"AWQ, {_GEMV_BITS} bits", (codes[0], codes[1] * 32 // _GEMV_BITS))
    bits = 32 * codes[1] // scales[1]
    return LogicalTensor.of(f"AWQ, {bits} bits", (scales[1], codes[0])) if 0 < bits <= _MOST else None


def _gptq(parts: Parts, codes: tuple[int, ...], groups: int, quantisation: QuantisationSettings) -> LogicalTensor:
    """Return the logical tensor of GPTQ's codes; zero points, ``g_idx``, groups or settings determine its bits."""
    zeros, order = parts.get(".qzeros"), parts.get(".g_idx")
    bits = 32 * zeros.shape[-1] // codes[1] if zeros is not None and zeros.shape else 0
    columns = order.numel if order is not None else 0
    is_other = bool(columns) and not columns * bits // 32 <= codes[0] <= -(-columns * bits // 32)
    if bits and (not columns or (is_other and bits in quantisation.numbers("bits", most=_MOST))):
        columns = codes[0] * 32 // bits  # a g_idx whose length does not fit the codes is ignored
    if not columns:
        possible = quantisation.numbers("bits", most=_MOST)
        sizes = quantisation.numbers("group_size", most=_LONGEST) if groups > 1 else ()
        fitting = [one for one in possible if codes[0] * 32 // one in [groups * size for size in sizes]] or possible
        columns = codes[0] * 32 // fitting[0] if len(fitting) == 1 else 0
    if not columns:
        return LogicalTensor("GPTQ", None, at_least=codes[0] * codes[1] * 32 // _MOST)
    return LogicalTensor.of(f"GPTQ, {bits or codes[0] * 32 // columns} bits", (codes[1], columns))


ENCODINGS = (Encoding(".qweight", frozenset({"int32"}), (".scales",), _logical, (".qzeros", ".g_idx")),)
