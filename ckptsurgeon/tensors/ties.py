"""Finds tied tensors: keys whose tensors have the same bytes, such as an embedding and its output layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from .info import TensorInfo

__all__ = ["tied_keys"]


def tied_keys(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Map every key whose tensor has the same bytes as that of an earlier key to the first key with these bytes."""
    first: dict[Hashable, str] = {}
    aliases: dict[str, str] = {}
    for key, info in tensors.items():
        place = info.place
        if place is None or info.numel == 0:
            continue
        owner = first.setdefault(place, key)
        if owner != key:
            aliases[key] = owner
    return aliases
