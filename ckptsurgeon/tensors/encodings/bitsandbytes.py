"""Recognises bitsandbytes: nf4 and fp4 in blocks, whose scales may be quantised too; int8 with a scale for each row.

See https://github.com/bitsandbytes-foundation/bitsandbytes (``QuantState.as_dict``, ``Linear8bitLt``).
"""

from __future__ import annotations

from ..bitsandbytes_values import STATE
from ..quantised.encoding import Encoding, LogicalTensor, Parts, same_shape
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_OTHERS = ("", ".quant_map", ".nested_absmax", ".nested_quant_map")


def _four_bits(kind: str) -> Encoding:
    """Return the encoding "nf4" or "fp4" (``kind``); codes may have any dtype, as a ``quant_state`` identifies it."""

    def logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
        codes = parts.get("")  # two codes in a byte; the shape of the weight is stored in the value of the quant_state
        return LogicalTensor(f"bitsandbytes {kind}", codes.nbytes * 2) if codes is not None else None

    return Encoding(f"{STATE}{kind}", frozenset({"uint8"}), (".absmax",), logical, _OTHERS, codes="", named="")


_EIGHT = Encoding(".weight", frozenset({"int8"}), (".SCB",), same_shape("bitsandbytes int8"), (".weight_format",))
ENCODINGS = (_four_bits("nf4"), _four_bits("fp4"), _EIGHT)
