"""Sizes of attention and feed-forward layers in config.json that no layer of the weights has: a note on each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...tensors.dtypes import DTYPES
from ...util.text import count, escape
from .config import has_parts

__all__ = ["Described", "is_number", "is_plain", "shape_notes"]

MLP = re.compile(r"\d\.(?:mlp\.(?:down_proj|dense_4h_to_h)|(intermediate)\.dense)\.weight$")
"""Weights from or into the inner width of a layer: its columns, of BERT's its rows."""
OUTPUT = re.compile(r"\d\.self_attn\.o_proj\.weight$")
"""The weight whose columns are the heads together; queries may have gates beside them."""
INNER = ("intermediate", "hidden", "ffn", "inner", "feed_forward", "mlp")
"""Words in the fields that give an inner width."""
HEAD_SIZES = ("head_dim", "head_size", "kv_channels", "d_kv", "d_head")
KEY_HEADS = ("key_value_heads", "kv_heads", "query_groups")
USUAL = (64, 96, 128, 256)
"""What classes have as length of heads if a configuration does not say it."""
UNLOADED = "the model cannot be loaded so"
BY_LAYER = ("block_configs", "multi_query", "per_layer_config")
"""Fields of models whose layers have sizes of their own."""


class Described(NamedTuple):
    """A tensor of a model: ``tied_to`` is the first key of the same values, '' if it has its own."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    tied_to: str = ""


def shape_notes(tensors: Iterable[Described], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the configuration of a model of one part says of sizes that no layer has.

    Layers of one model may differ, and their classes have defaults: one that fits is enough.
    """
    if has_parts(config) or any(name in config for name in BY_LAYER):
        return
    weights = {one.key: one for one in tensors if is_plain(one)}
    yield from _feed_forward(weights, config)
    yield from _attention(weights, config)


def is_plain(one: Described) -> bool:
    """Whether a tensor is a matrix of numbers, as they are and not packed."""
    return len(one.shape) == 2 and min(one.shape) > 1 and is_number(one)


def is_number(one: Described) -> bool:
    """Whether a tensor's values are numbers, as they are and not packed."""
    dtype = DTYPES[one.dtype]
    return dtype.kind == "float" and dtype.values == 1 and dtype.bits >= 8


def _feed_forward(weights: Mapping[str, Described], config: Mapping[str, Any]) -> Iterator[str]:
    width = config.get("intermediate_size")
    found = {key: match for key in weights if (match := MLP.search(key)) is not None}
    known = set(_numbers(config, INNER))
    if type(width) is not int or not found:
        return
    sizes = {key: weights[key].shape[0 if match[1] else 1] for key, match in found.items()}
    if known.isdisjoint(sizes.values()):
        key, size = next(iter(sizes.items()))
        has = count(size, "row" if found[key][1] else "column")
        yield f"config.json says {width} (intermediate_size), and {escape(key)} has {has}: {UNLOADED}"


def _attention(weights: Mapping[str, Described], config: Mapping[str, Any]) -> Iterator[str]:
    """Compare the heads of layers that have keys and values of their own: others compress or share them."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    layers = [key.removesuffix("o_proj.weight") for key in weights if OUTPUT.search(key)]
    layers = [one for one in layers if f"{one}k_proj.weight" in weights and f"{one}q_proj.weight" in weights]
    if type(heads) is not int or type(width) is not int or heads < 1 or not layers:
        return
    said = [size for size in _numbers(config, HEAD_SIZES) if size > 0]
    is_said = type(config.get("head_dim")) is int
    sizes = {*said, *(USUAL if not said else ()), *(() if is_said else (width // heads,))}
    together = {f"{one}o_proj.weight": weights[f"{one}o_proj.weight"].shape[1] for one in layers}
    if {heads * size for size in sizes}.isdisjoint(together.values()):
        key, columns = next(iter(together.items()))
        of = f" of {config['head_dim']} (num_attention_heads, head_dim)" if is_said else " (num_attention_heads)"
        yield (
            f"config.json says {count(heads, 'head')}{of}, and {escape(key)} has {count(columns, 'column')}: {UNLOADED}"
        )
        return
    own = config.get("num_key_value_heads", 0)
    groups = {*_numbers(config, KEY_HEADS), *([heads] if own is None else [])}
    keys = {f"{one}k_proj.weight": weights[f"{one}k_proj.weight"].shape[0] for one in layers}
    if groups and {group * size for group in groups for size in sizes}.isdisjoint(keys.values()):
        key, rows = next(iter(keys.items()))
        yield (
            f"config.json says {count(own or heads, 'head')} of keys and values (num_key_value_heads), and "
            f"{escape(key)} has {count(rows, 'row')}: {UNLOADED}"
        )


def _numbers(config: Mapping[str, Any], words: Sequence[str]) -> Iterator[int]:
    """Yield the whole numbers in fields of such names, those in lists too."""
    for name, value in config.items():
        if any(word in name for word in words):
            yield from (one for one in (value if isinstance(value, list) else [value]) if type(one) is int)
