"""Says whether attention windows have an effect, and whether Llama and Mistral compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .derived_kinds import derived_lists
from .derived_lists import RULES, SLIDING

__all__ = ["WINDOW", "has_window", "is_one_network", "uses_window"]

WINDOW, POSITIONS, LISTED = "sliding_window", "max_position_embeddings", "layer_types"
DEFAULTS = {"mistral": {WINDOW: 4096, POSITIONS: 131072}}
"""{model type: {field: default, which applies if a config.json does not set the field}}"""
WINDOWED = ("ministral3", "mistral", "mixtral", "phi3", "phimoe", "qwen3_moe", "starcoder2")
"""Model types without ``layer_types`` in which all layers have a window, unless ``sliding_window`` is null."""
SWITCHED = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Model types with a window only if ``use_sliding_window`` is true."""
BIASES = ("attention_bias", "mlp_bias")


def has_window(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration limits attention to a window that is shorter than its number of positions."""
    kind = str(config.get("model_type"))
    if config.get("use_sliding_window", True) is False:
        return False
    window, positions = (config.get(name, DEFAULTS.get(kind, {}).get(name)) for name in (WINDOW, POSITIONS))
    return bool(window) and not (type(window) is int and type(positions) is int and window >= positions)


def uses_window(config: Mapping[str, Any]) -> bool:
    """Return whether transformers is known to compute with the ``sliding_window`` of a configuration, if it is set."""
    kind, switch = config.get("model_type"), config.get("use_sliding_window")
    if switch is False or (kind in SWITCHED and not switch):
        return False
    given = config.get(LISTED) if kind in RULES[LISTED] else None
    kinds = given if isinstance(given, list) else derived_lists(config).get(LISTED, ())
    return kind in WINDOWED or SLIDING in kinds


def is_one_network(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two configurations have the same model type, or are of Llama and of Mistral without a window.

    A Llama without biases computes the same as a Mistral without a window.
    """
    pair = (one, other)
    kinds = {each.get("model_type") for each in pair}
    is_plain = not any(has_window(each) or any(each.get(name) for name in BIASES) for each in pair)
    return len(kinds) == 1 or (kinds == {"llama", "mistral"} and is_plain)
