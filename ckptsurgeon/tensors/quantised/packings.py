"""Reads AutoRound's ``packing_format``: it names GPTQ's or AWQ's codes, and how GPTQ's zero points are stored.

AutoRound assumes ``auto_round:auto_gptq`` if the field is missing, and refuses
values that are not in ``_LAYOUTS``. https://github.com/intel/auto-round/blob/main/auto_round/inference/convert_model.py
(``convert_hf_model``), https://github.com/intel/auto-round/blob/main/auto_round/inference/backend.py (``GPTQ_FORMAT``,
``GPTQ_FORMAT_NO_ZP``, ``AWQ_FORMAT``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["AUTOROUND_NAMES", "PACKING", "assumed_packing", "format_of_packing", "other_packings", "packing_of"]

AUTOROUND_NAMES = ("auto-round", "intel/auto-round")
PACKING = "packing_format"
_GPTQ, _AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
_LAYOUTS: Mapping[str, tuple[str, str]] = {
    _GPTQ: ("GPTQ", "gptq"),
    "auto_round": ("GPTQ", "gptq_v2"),
    "auto_round:gptqmodel": ("GPTQ", "gptq_v2"),
    _AWQ: ("AWQ", ""),
}
"""{``packing_format``: (family of the codes, format of GPTQ)}: ``gptq_v2`` stores zero points as they are."""
_ALIASES = {"auto": _GPTQ, "auto_round:gptq": _GPTQ, "auto_round:awq": _AWQ}
_BACKENDS = ("auto_round", "autoround", "auto-round")
"""The beginnings of ``backend``, which AutoRound wrote before 0.5 in place of ``packing_format``.

If ``backend`` does not name GPTQ or AWQ, AutoRound's own module was used, which stored zero points as they are. There
was no such module for 3 bits.
https://github.com/intel/auto-round/blob/v0.3/auto_round/export/export_to_autoround/export.py
"""
_OF_ACTIVATIONS = 8
"""If activations have at most this many bits (``act_bits``), AutoRound packs weights with another module.

That module stores each zero point minus 1.

https://github.com/intel/auto-round/blob/main/auto_round/export/export_to_autoround/qlinear_triton_act.py
"""
_LONGEST = 40


def packing_of(settings: Mapping[str, Any]) -> str | None:
    """Return the ``packing_format`` of AutoRound's settings in lower case; None for settings of another method.

    If ``packing_format`` is missing or null, it is derived from the field ``backend``, which older versions of
    AutoRound wrote; the result is None if ``backend`` is missing or unknown.
    """
    if settings.get("quant_method") not in AUTOROUND_NAMES:
        return None
    value = settings.get(PACKING)
    if value is None:
        return _packing_of_backend(settings)
    said = str(value)[:_LONGEST].lower()
    return _ALIASES.get(said, said)


def _packing_of_backend(settings: Mapping[str, Any]) -> str | None:
    backend = str(settings.get("backend") or "")[:_LONGEST].lower()
    if not backend.startswith(_BACKENDS):
        return None
    if "awq" in backend:
        return _AWQ
    return _GPTQ if "gptq" in backend or settings.get("bits") == 3 else "auto_round"


def format_of_packing(settings: Mapping[str, Any]) -> str:
    """Return the format of GPTQ that the ``packing_format`` means; "" if it is missing, unknown, or of AWQ."""
    act_bits = settings.get("act_bits")
    if type(act_bits) is int and 0 < act_bits <= _OF_ACTIVATIONS:
        return ""
    return _LAYOUTS.get(packing_of(settings) or "", ("", ""))[1]


def other_packings(kind: str, packing: str | None) -> tuple[str, ...]:
    """Return the values of ``packing_format`` that fit codes of a family (``kind``); () if ``packing`` is one of them.

    ``packing`` is the ``packing_format`` of the settings. The result is also () if this is None, or if no value of
    ``packing_format`` fits the family.
    """
    fitting = tuple(one for one, (family, _) in _LAYOUTS.items() if family == kind)
    return () if packing is None or packing in fitting else fitting


def assumed_packing(kind: str) -> str:
    """Return the ``packing_format`` that is assumed for codes of a family if it is missing; "" for other families."""
    return {"GPTQ": _GPTQ, "AWQ": _AWQ}.get(kind, "")
