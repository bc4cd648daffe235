"""Queries, keys and values in one tensor, as in Phi-3 and Falcon: they are changed as three tensors, and joined again.

In one kind of layer they follow each other as wholes; in another, as in Falcon-40B, the queries of each group of heads
are followed by the key and the value that they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import escape
from .axes import Network, numberless

__all__ = ["GROUPED", "KIND", "Heads", "fused_keys", "joins", "separated", "splits"]

KIND = "queries, keys and values"
"""The kind of a layer with the rows of all queries, then those of keys, then those of values."""
GROUPED = "queries, keys and values of each group"
"""The kind of a layer with the rows of the queries that share a key, then those of the key, then of its value."""
KINDS = (KIND, GROUPED)
_PARTS = ("q_proj", "k_proj", "v_proj")


class Heads(NamedTuple):
    """The number of heads of queries, and of keys and values."""

    queries: int
    keys: int


def separated(network: Network, heads: Heads) -> Network:
    """Return a network in which queries, keys and values are tensors of their own; raises PlanError for odd sizes."""
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
    """Return the operations that make the tensors of ``separated`` of those that a checkpoint has."""
    rows: list[dict[str, Any]] = []
    for pattern, key in _fused(network).items():
        groups = _groups(network, key, heads)
        sizes = [size // groups for size in _sizes(key, network.tensors[key], heads)]
        row: dict[str, Any] = {"split": pattern, "into": list(map(numberless, _names(key))), "sizes": sizes}
        rows.append({**row, "groups": groups} if groups > 1 else row)
    return rows


def joins(network: Network, heads: Heads) -> list[dict[str, Any]]:
    """Return the operations that undo ``splits``, after the parts were changed; there are ``heads`` then."""
    rows: list[dict[str, Any]] = []
    for pattern, key in _fused(network).items():
        groups = _groups(network, key, heads)
        row: dict[str, Any] = {"concat": list(map(numberless, _names(key))), "into": pattern}
        rows.append({**row, "groups": groups} if groups > 1 else row)
    return rows


def _fused(network: Network) -> dict[str, str]:
    """Return, by the pattern of their keys, the first tensor of each that has queries, keys and values."""
    found: dict[str, str] = {}
    for key in network.tensors:
        if network.kinds.get(key) in KINDS:
            found.setdefault(numberless(key), key)
    return found


def _groups(network: Network, key: str, heads: Heads) -> int:
    return heads.keys if network.kinds[key] == GROUPED else 1


def fused_keys(network: Network) -> Mapping[str, str]:
    """Return, by the key of each part, the key of the tensor that it is a part of."""
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
