"""Reads fields of config.json, and refuses values that llama.cpp's metadata cannot express."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import PlanError
from ...planning.llama_cpp.model_types import DEFAULTS, Defaults
from ...util.text import brief_repr

__all__ = ["check_activation", "check_only", "defaults_of", "number_in"]

_ACTIVATIONS = ("hidden_activation", "hidden_act")


def number_in(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """Return the number in a field, or ``default`` if the field is missing; raises PlanError if neither is a number."""
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PlanError(
            f"config.json gives {name} as {brief_repr(value, 40)}, not a number.", hint="Correct config.json."
        )
    return float(value)


def check_only(fields: Mapping[str, Any], name: str, *allowed: Any) -> None:
    """Raise PlanError if a field has a value that is not in ``allowed``, the values that llama.cpp can compute with."""
    value = fields.get(name)
    if value is not None and value not in allowed:
        first = allowed[0] if allowed else None
        if isinstance(value, list) and isinstance(first, list) and len(value) == len(first):
            at = next(index for index, pair in enumerate(zip(value, first, strict=True)) if pair[0] != pair[1])
            name, value, allowed = f"entry {at} of {name}", value[at], (first[at],)
        raise PlanError(
            f"config.json gives {name} as {brief_repr(value, 40)}, which llama.cpp's metadata cannot express"
            f"{f': llama.cpp computes with {brief_repr(allowed[0], 40)}' if allowed else ''}.",
            hint="Use llama.cpp's convert_hf_to_gguf.py, or convert without changing the layout: --layout keep.",
        )


def check_activation(config: Mapping[str, Any]) -> None:
    """Raise PlanError for an activation function that llama.cpp does not use for models of this type."""
    stated = next((name for name in _ACTIVATIONS if config.get(name) is not None), _ACTIVATIONS[1])
    check_only(config, stated, *DEFAULTS[config["model_type"]].activations)


def defaults_of(config: Mapping[str, Any]) -> Defaults:
    """Return transformers' default values of fields for the model type in ``config``."""
    return DEFAULTS[config["model_type"]]
