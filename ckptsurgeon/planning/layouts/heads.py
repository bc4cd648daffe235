"""Finds the numbers of attention heads of a network in its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .layout import Numbers, Tensors

__all__ = ["heads_in", "heads_of_decoder"]

_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads")
_KEYS = ("num_key_value_heads", "n_kv_heads")
FREQUENCIES = "rope.freqs"
"""The frequencies of the rotary embedding in Meta's files: one for each pair of rows of a head."""
QUERIES, KEYS = "layers.0.attention.wq.weight", "layers.0.attention.wk.weight"
"""The first queries and keys in Meta's files."""


def heads_in(tensors: Tensors, config: Mapping[str, Any]) -> Numbers:
    """Return the numbers of heads, and of heads of keys and values, that a configuration has; {} if it has none.

    Reads the fields of transformers' config.json and of Meta's and Mistral's params.json.
    """
    heads = next((config[name] for name in _HEADS if _is_number(config.get(name))), None)
    if heads is None:
        return {}
    return {"heads": heads, "keys": next((config[name] for name in _KEYS if _is_number(config.get(name))), heads)}


def heads_of_decoder(tensors: Tensors, config: Mapping[str, Any]) -> Numbers:
    """Return ``heads_in`` of a configuration; without a configuration, the numbers that ``rope.freqs`` shows."""
    stated = heads_in(tensors, config)
    if stated or FREQUENCIES not in tensors or not {QUERIES, KEYS} <= tensors.keys():
        return stated
    head = 2 * tensors[FREQUENCIES].numel
    rows = [tensors[key].shape[0] if tensors[key].shape else 0 for key in (QUERIES, KEYS)]
    if not head or any(not number or number % head for number in rows):
        return {}
    return {"heads": rows[0] // head, "keys": rows[1] // head}


def _is_number(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 20
