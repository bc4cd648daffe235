"""The order of the parts of fused projections (queries, keys, values; gate, up), by the names of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["order_of_parts", "part_of", "wrong_order"]

_PARTS = {
    "q": "q q_proj wq query query_proj to_q attn_q q_lin linear_q",
    "k": "k k_proj wk key key_proj to_k attn_k k_lin linear_k",
    "v": "v v_proj wv value value_proj to_v attn_v v_lin linear_v",
    "gate": "gate gate_proj w1 ffn_gate",
    "up": "up up_proj w3 ffn_up",
}
"""{part: names of the modules that compute only this part (q, k, v, gate or up)}."""
_FUSED = {
    "q k v": "c_attn Wqkv wqkv qkv qkv_proj in_proj in_proj_weight in_proj_bias attn_qkv query_key_value linear_qkv",
    "k v": "kv_proj to_kv Wkv wkv",
    "gate up": "gate_up_proj gate_up w13 dense_h_to_4h linear_fc1",
}
"""{order of the parts: names of the fused projections with this order}.

In query_key_value, the parts of one head are followed by the parts of the next head: this is then the order inside a
head.
"""
_KINDS = {name: kind for kind, names in _PARTS.items() for name in names.split()}
_ORDERS = {name: tuple(order.split()) for order, names in _FUSED.items() for name in names.split()}
_OTHER = re.compile(r"(?:^|\.)h\.\d+\.attn\.qkv_proj\.")
"""The fused projection of CodeGen: it has four blocks, each with queries, values and keys in this order."""
_DEPTH = 4
"""The number of segments at the end of a key that are searched for a module's name; in adapters, several follow it."""


def part_of(key: str) -> str:
    """Return the part of a fused projection that a key names: ``a.q_proj.weight`` -> q (k, v, gate, up); '' if none."""
    return next((_KINDS[name] for name in _last(key) if name in _KINDS), "")


def order_of_parts(key: str) -> tuple[str, ...]:
    """Return the parts of a fused projection in order: ``a.qkv_proj.weight`` -> (q, k, v); () if it is unknown."""
    found = next((_ORDERS[name] for name in _last(key) if name in _ORDERS), ())
    return () if _OTHER.search(key) else found


def wrong_order(fused: str, parts: Iterable[str]) -> bool:
    """Return whether the order of ``parts`` (q, k, v, gate, up) differs from the order in the projection ``fused``."""
    order, found = order_of_parts(fused), list(parts)
    if len(found) < 2 or len(set(found)) != len(found) or not set(found) <= set(order):
        return False
    return found != [kind for kind in order if kind in found]


def _last(key: str) -> list[str]:
    return key.split(".")[: -_DEPTH - 1 : -1]
