"""The rotary embedding of Phi-3 and Phi-4 for llama.cpp: metadata, and frequency divisors for short and long texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import PlanError
from ...util.text import brief_repr, escape
from .fields import check_only, number_in
from .rope import rope_fields, theta_of

__all__ = ["phi_3_entries", "phi_3_factors"]

ORIGINAL = "original_max_position_embeddings"
DEFAULT, LONG = "default", "longrope"
_NAMES = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}


def phi_3_entries(config: Mapping[str, Any], size: int) -> dict[str, str]:
    """Return the entries for the rotary embedding and the sliding window, without the architecture as prefix.

    ``size`` is the size of a head. Raises PlanError for another scaling than ``longrope``, which has divisors for short
    and for long texts.
    """
    fields = rope_fields(config)
    context, original = number_in(config, "max_position_embeddings"), _original(config, fields)
    found = {
        "rope.freq_base": str(theta_of(fields, config)),
        "rope.dimension_count": str(_rotary(config, fields, size)),
        "rope.scaling.original_context_length": str(original),
        "attention.sliding_window": str(config.get("sliding_window") or 0),
    }
    if _is_long(fields):
        scale = context / original
        own = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        stated = fields.get("attention_factor")
        if not (isinstance(stated, float) and math.isclose(stated, own, rel_tol=1e-6)):
            check_only(fields, "attention_factor", own)
        found["rope.scaling.attn_factor"] = str(own)
    return found


def phi_3_factors(config: Mapping[str, Any], size: int) -> dict[str, Sequence[float]]:
    """Return the divisors of the rotary frequencies, by the names of llama.cpp's tensors; {} without ``longrope``.

    ``size`` is the size of a head. Raises PlanError if a divisor is not a number above 0, or if the number of
    divisors is not half the number of values that the rotary embedding rotates in a head.
    """
    fields = rope_fields(config)
    if not _is_long(fields):
        return {}
    number = _rotary(config, fields, size) // 2
    for name in _NAMES:
        values = fields.get(name)
        if not isinstance(values, list) or len(values) != number or not all(map(_is_divisor, values)):
            raise PlanError(
                f"config.json gives {name} as {brief_repr(values, 40)}, not {number} numbers above 0.",
                hint="Correct config.json.",
            )
    return {theirs: [float(value) for value in fields[ours]] for ours, theirs in _NAMES.items()}


def _is_divisor(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9


def _is_long(fields: Mapping[str, Any]) -> bool:
    """Return whether the scaling is ``longrope`` (or ``su``, its old name); False if there is no scaling.

    Raises PlanError for any other scaling.
    """
    kind = str(fields.get("rope_type") or fields.get("type") or DEFAULT)
    if kind not in (DEFAULT, LONG, "su"):
        raise PlanError(
            "config.json scales the rotary embedding with the method "
            f"{escape(kind, 40)}, which llama.cpp does not read for phi3.",
            hint="Convert without changing the layout: --layout keep.",
        )
    return kind != DEFAULT


def _original(config: Mapping[str, Any], fields: Mapping[str, Any]) -> int:
    stated = fields.get(ORIGINAL) or config.get(ORIGINAL) or config.get("max_position_embeddings")
    if type(stated) is not int or stated < 2:
        raise PlanError(
            f"config.json gives {ORIGINAL} as {brief_repr(stated, 40)}, not a number above 1.",
            hint="Correct config.json.",
        )
    return stated


def _rotary(config: Mapping[str, Any], fields: Mapping[str, Any], size: int) -> int:
    """Return the number of values that the rotary embedding rotates, of the ``size`` values of a head.

    ``fields`` are the fields of the rotary embedding in ``config``. Raises PlanError if the share of rotated values
    (``partial_rotary_factor``) is not valid.
    """
    part = number_in(fields, "partial_rotary_factor", number_in(config, "partial_rotary_factor", 1.0))
    if not 0 < part <= 1:
        raise PlanError(
            f"config.json gives partial_rotary_factor as {part:g}, not a number above 0 and up to 1.",
            hint="Correct config.json.",
        )
    return int(part * size)
