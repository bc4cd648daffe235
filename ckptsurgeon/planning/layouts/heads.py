"""Finds the numbers of attention heads of a network in its configuration, and compares them with the shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import PlanError
from ...util.text import count, escape
from .layout import Numbers, Tensors

__all__ = ["equal_heads", "heads_in", "heads_of_decoder"]

_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads")
_KEYS = ("num_key_value_heads", "n_kv_heads")
_WIDTH = ("hidden_size", "dim")
FREQUENCIES = "rope.freqs"
"""The frequencies of the rotary embedding in Meta's files: one for each pair of rows of a head."""
PROJECTIONS = ("layers.0.attention.w{}", "layers.0.attn.{}_proj", "model.layers.0.self_attn.{}_proj")
"""The modules of the first layer's queries (q) and keys (k) in the layouts of Meta, torchtune and transformers."""
_FIRST = ("decoder.layers.0.self_attention", "decoder.layers.self_attention")
FUSED = (
    *((f"{one}.linear_qkv.weight", f"{one}.linear_proj.weight") for one in _FIRST),
    ("block.0.attn.qkv.weight", "block.0.attn.out.weight"),
)
"""Keys of fused queries, keys and values, each with the key of the output projection: Megatron-core, OpenAI's gpt-oss.

They are the keys of the first layer or, if one tensor has all layers, of all layers.
"""
NORMS = ("model.layers.0.self_attn.q_norm.weight", *(f"{one}.q_layernorm.weight" for one in _FIRST))
"""The norms of the first layer's queries in the layouts of transformers and Megatron-core."""
SINKS = ("model.layers.0.self_attn.sinks", "block.0.attn.sinks")
"""The first layer's sinks, one for each head of queries, in the two layouts of gpt-oss."""


def heads_in(tensors: Tensors, config: Mapping[str, Any]) -> Numbers:
    """Return the number of query heads ("heads") and of key heads ("keys") in a configuration; {} if it has none.

    There are as many value heads as key heads. The fields of transformers' config.json are read, and the fields of
    Meta's and Mistral's params.json.
    """
    heads = _stated(config, _HEADS)
    return {"heads": heads, "keys": _stated(config, _KEYS) or heads} if heads else {}


def equal_heads(tensors: Tensors, config: Mapping[str, Any]) -> Numbers:
    """Return the numbers of heads, as ``heads_in`` does, of a network with as many key heads as query heads.

    Raises PlanError if ``config`` has another number of key heads.
    """
    stated = heads_in(tensors, config)
    if stated and stated["keys"] != stated["heads"]:
        raise PlanError(
            f"{count(stated['heads'], 'head')} of queries and {stated['keys']} of keys and values do not fit this "
            "network, which has the same number of both.",
            hint="Correct the numbers of heads: one number is enough, as in --heads 12.",
        )
    return stated


def heads_of_decoder(tensors: Tensors, config: Mapping[str, Any]) -> Numbers:
    """Return the numbers of heads of a decoder, in the form of ``heads_in``.

    The numbers are those in ``config``. If ``config`` has none, they follow from the length of one of these tensors:
    ``rope.freqs`` in Meta's files, the norm of each head's queries, or the sinks of gpt-oss. Raises PlanError if the
    numbers in ``config`` do not fit the rows of queries and keys.
    """
    stated, width = heads_in(tensors, config), _stated(config, _WIDTH)
    found = _projections(tensors)
    if found is None:
        return stated
    said, rows = found
    shown = _shown(tensors, rows[0])
    if not stated and shown and all(number and number % shown == 0 for number in rows):
        return {"heads": rows[0] // shown, "keys": rows[1] // shown}
    if stated:
        size = _stated(config, ("head_dim",)) or (width // stated["heads"] if width else rows[0] // stated["heads"])
        size = shown or size
        if rows != [stated["heads"] * size, stated["keys"] * size]:
            raise PlanError(
                f"{said}, which do not fit {count(stated['heads'], 'head')} of queries and {stated['keys']} of keys "
                f"with {size} rows in each head.",
                hint="Correct the numbers of heads. If the file is the part of one tensor-parallel rank, join the "
                "files of all ranks first.",
            )
    return stated


def _projections(tensors: Tensors) -> tuple[str, list[int]] | None:
    """Return (text on the projections of the first layer, [rows of queries, rows of keys]); None if there are none.

    For a fused matrix, the output projection shows the number of rows of queries: it has one column for each row.
    Raises PlanError if the remaining rows cannot be divided equally into keys and values.
    """
    queries, keys = (_first(kind, tensors) for kind in "qk")
    if queries and keys:
        rows = [tensors[key].shape[0] if tensors[key].shape else 0 for key in (queries, keys)]
        return f"{escape(queries)} has {rows[0]} rows and {escape(keys)} has {rows[1]}", rows
    for fused, output in FUSED:
        if fused in tensors and output in tensors and min(len(tensors[key].shape) for key in (fused, output)) > 1:
            every, columns = tensors[fused].shape[-2], tensors[output].shape[-1]
            said = f"{escape(fused)} has {every} rows and {escape(output)} has {columns} columns"
            if every <= columns or (every - columns) % 2:
                raise PlanError(
                    f"{said}: the rows after {columns} rows of queries cannot be divided equally into keys and values.",
                    hint="Complete the model first.",
                )
            return said, [columns, (every - columns) // 2]
    return None


def _shown(tensors: Tensors, rows: int) -> int:
    """Return the number of rows of a head, if a tensor shows it, else 0; ``rows`` is the number of rows of all queries.

    A norm of all queries together, as in OLMo, does not show it.
    """
    if FREQUENCIES in tensors:
        return 2 * tensors[FREQUENCIES].numel
    for key in SINKS:
        if key in tensors and (heads := tensors[key].numel):
            return rows // heads if rows % heads == 0 else 0
    sizes = (tensors[key].shape[-1] for key in NORMS if key in tensors and tensors[key].shape)
    return next((size for size in sizes if size < rows), 0)


def _stated(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Return the value of the first of the fields ``names`` that is a whole number above 0; 0 if there is none."""
    return next((config[name] for name in names if type(config.get(name)) is int and 0 < config[name] < 1 << 20), 0)


def _first(kind: str, tensors: Tensors) -> str:
    """Return the key of the first layer's weight of queries ("q") or keys ("k"); '' if there is none."""
    return next((key for one in PROJECTIONS if (key := f"{one.format(kind)}.weight") in tensors), "")
