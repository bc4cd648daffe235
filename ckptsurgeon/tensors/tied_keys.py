"""Finds tied tensors: keys whose tensors have the same bytes, such as an embedding and its output layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from .info import TensorInfo

__all__ = ["tied_keys"]


def tied_keys(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return {key: first key with the same bytes}, for each key whose tensor has the same bytes as an earlier one."""
    begins = {(id(info.storage), info.offset) for info in tensors.values()}
    if len(begins) == len(tensors):  # as in most files; this takes a third of the time
        return {}
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
