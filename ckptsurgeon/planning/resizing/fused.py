"""Queries, keys and values in one tensor, as in Phi-3: they are changed as three tensors, and joined again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import escape
from .axes import Network, numberless

__all__ = ["KIND", "Heads", "fused_keys", "joins", "separated", "splits"]

KIND = "queries, keys and values"
"""The kind of a layer with the rows of all queries, then those of keys, then those of values."""
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
        if network.kinds.get(key) != KIND:
            tensors[key] = info
            continue
        for name, rows in zip(_names(key), _sizes(key, info, heads), strict=True):
            tensors[name], kinds[name] = TensorInfo(info.dtype, (rows, *info.shape[1:])), "linear"
    return replace(network, tensors=tensors, kinds=kinds)


def splits(network: Network, heads: Heads) -> list[dict[str, Any]]:
    """Return the operations that make the tensors of ``separated`` of those that a checkpoint has."""
    fused = {numberless(key): (key, info) for key, info in network.tensors.items() if network.kinds.get(key) == KIND}
    return [
        {"split": pattern, "into": list(map(numberless, _names(key))), "sizes": _sizes(key, info, heads)}
        for pattern, (key, info) in fused.items()
    ]


def joins(network: Network) -> list[dict[str, Any]]:
    """Return the operations that undo ``splits``, after the parts were changed."""
    fused = {numberless(key): key for key, kind in network.kinds.items() if kind == KIND}
    return [{"concat": list(map(numberless, _names(key))), "into": pattern} for pattern, key in fused.items()]


def fused_keys(network: Network) -> Mapping[str, str]:
    """Return, by the key of each part, the key of the tensor that it is a part of."""
    return {name: key for key, kind in network.kinds.items() if kind == KIND for name in _names(key)}


def _names(key: str) -> list[str]:
    *parents, _, end = key.split(".")
    return [".".join([*parents, part, end]) for part in _PARTS]


def _sizes(key: str, info: TensorInfo, heads: Heads) -> list[int]:
    size, rest = divmod(info.shape[0], heads.queries + 2 * heads.keys)
    if rest:
        raise PlanError(
            f"{escape(key)} has {info.shape[0]} rows, which are not those of {heads.queries} heads of queries, and "
            f"{heads.keys} each of keys and values."
        )
    return [heads.queries * size, heads.keys * size, heads.keys * size]
