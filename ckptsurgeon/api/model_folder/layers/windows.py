"""Says whether attention windows have an effect, and whether Llama and Mistral compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["has_window", "is_one_network"]

WINDOW, POSITIONS = "sliding_window", "max_position_embeddings"
DEFAULTS = {"mistral": {WINDOW: 4096, POSITIONS: 131072}}
"""{model type: {field: default, which applies if a config.json does not set the field}}"""
BIASES = ("attention_bias", "mlp_bias")


def has_window(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration limits attention to a window that is shorter than its number of positions."""
    kind = str(config.get("model_type"))
    if config.get("use_sliding_window", True) is False:
        return False
    window, positions = (config.get(name, DEFAULTS.get(kind, {}).get(name)) for name in (WINDOW, POSITIONS))
    return bool(window) and not (type(window) is int and type(positions) is int and window >= positions)


def is_one_network(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two configurations have the same model type, or are of Llama and of Mistral without a window.

    A Llama without biases computes the same as a Mistral without a window.
    """
    pair = (one, other)
    kinds = {each.get("model_type") for each in pair}
    is_plain = not any(has_window(each) or any(each.get(name) for name in BIASES) for each in pair)
    return len(kinds) == 1 or (kinds == {"llama", "mistral"} and is_plain)
