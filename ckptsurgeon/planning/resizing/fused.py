"""Splits fused queries, keys and values, as in Phi-3 and Falcon, so that each can be changed, and joins them again.

In one kind of layer, all queries come first, then all keys, then all values. In another, as in Falcon-40B, the queries
of each group of heads are followed by the key and the value that they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..keys.spelling import numberless
from .axes import Network

__all__ = ["GROUPED", "KIND", "Heads", "fused_keys", "joins", "separated", "splits"]

KIND = "queries, keys and values"
"""The kind of a layer with the rows of all queries, then of all keys, then of all values."""
GROUPED = "queries, keys and values of each group"
"""The kind of a layer in which each group of queries is followed by the key and the value that it shares."""
KINDS = (KIND, GROUPED)
_PARTS = ("q_proj", "k_proj", "v_proj")


class Heads(NamedTuple):
    """The number of query heads, and the number of key heads (there are as many value heads)."""

    queries: int
    keys: int


def separated(network: Network, heads: Heads) -> Network:
    """Return the network with separate tensors for queries, keys and values.

    Raises PlanError if the numbers of heads do not fit the rows of a fused tensor.
    """
    tensors: dict[str, TensorInfo] = {}
    kinds = dict(network.kinds)
    for key, info in network.tensors.items():
        if network.kinds.get(key) not in KINDS:
            tensors[key] = info
            continue
        for name, rows in zip(_names(key), _sizes(key, info, heads), strict=True):
            tensors[name], kinds[name] = TensorInfo(info.dtype, (rows, *info.shape[1:])), "linear"
    return replace(network, tensors=tensors, kinds=kinds)


def splits(network: Network, heads: Heads) -> list[dict[str, Any]]:
    """Return the operations that split a checkpoint's fused tensors into the tensors that ``separated`` returns."""
    rows: list[dict[str, Any]] = []
    for pattern, key in _fused(network).items():
        groups = _groups(network, key, heads)
        sizes = [size // groups for size in _sizes(key, network.tensors[key], heads)]
        row: dict[str, Any] = {"split": pattern, "into": list(map(numberless, _names(key))), "sizes": sizes}
        rows.append({**row, "groups": groups} if groups > 1 else row)
    return rows


def joins(network: Network, heads: Heads) -> list[dict[str, Any]]:
    """Return the operations that join the separate tensors; ``heads`` are the numbers of heads after the change."""
    rows: list[dict[str, Any]] = []
    for pattern, key in _fused(network).items():
        groups = _groups(network, key, heads)
        row: dict[str, Any] = {"concat": list(map(numberless, _names(key))), "into": pattern}
        rows.append({**row, "groups": groups} if groups > 1 else row)
    return rows


def _fused(network: Network) -> dict[str, str]:
    """Return patterns that match the fused projections, each mapped to the first key that it matches."""
    found: dict[str, str] = {}
    for key in network.tensors:
        if network.kinds.get(key) in KINDS:
            found.setdefault(numberless(key), key)
    return found


def _groups(network: Network, key: str, heads: Heads) -> int:
    return heads.keys if network.kinds[key] == GROUPED else 1


def fused_keys(network: Network) -> Mapping[str, str]:
    """Return a map from the key of each separate tensor (queries, keys, values) to the key of the fused tensor."""
    return {name: key for key, kind in network.kinds.items() if kind in KINDS for name in _names(key)}


def _names(key: str) -> list[str]:
    *parents, _, end = key.split(".")
    return [".".join([*parents, part, end]) for part in _PARTS]


def _sizes(key: str, info: TensorInfo, heads: Heads) -> list[int]:
    size, rest = divmod(info.shape[0], heads.queries + 2 * heads.keys)
    if rest:
        raise PlanError(
            f"{escape(key)} has {info.shape[0]} rows, which do not fit {heads.queries} heads of queries and "
            f"{heads.keys} heads each of keys and values."
        )
    return [heads.queries * size, heads.keys * size, heads.keys * size]
