"""Finds layers whose tensors are all larger than those of the other layers, as if they were of another model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..util.text import NUMBER_IN_KEY

__all__ = ["larger_layers"]

LAYERS, ROLES = 4, 3
"""The fewest layers of a role, and the fewest roles of a list of layers, that show two groups of layers."""


def larger_layers(sizes: Mapping[str, float], apart: float) -> list[str]:
    """Return the keys of the tensors in the group of layers with the larger sizes, if there are two groups; else [].

    ``sizes`` are logarithms by key. In a model, the sizes of one role may differ between layers, but not those of all
    roles in the same layers. So all roles (keys without numbers) of a list of layers must be at least ``apart`` in the
    two groups, with at least a third of the layers in each. One layer may be in both groups: two files may share it.
    """
    lists: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for key, size in sizes.items():
        if found := NUMBER_IN_KEY.search(key):
            lists[key[: found.start()]][NUMBER_IN_KEY.sub("#", key)][key] = size
    return [key for roles in lists.values() for key in _larger(list(roles.values()), apart)]


def _larger(roles: Sequence[Mapping[str, float]], apart: float) -> list[str]:
    """Return the keys in the group of layers with the larger sizes; ``roles`` are the roles of one list of layers."""
    large, small, found, number = set[str](), set[str](), list[str](), 0
    for sizes in roles:
        by_layer: dict[str, list[str]] = defaultdict(list)
        for key in sizes:
            by_layer[_layer(key)].append(key)
        if len(by_layer) < LAYERS:
            continue
        ordered = sorted(by_layer, key=lambda one: max(sizes[key] for key in by_layer[one]))
        low, high = (len(ordered) + 2) // 3, len(ordered) * 2 // 3
        gaps = [
            (min(sizes[key] for key in by_layer[b]) - max(sizes[key] for key in by_layer[a]), at)
            for at, (a, b) in enumerate(pairwise(ordered), 1)
            if low <= at <= high
        ]
        gap, at = max(gaps)
        if gap < apart:
            return []
        small.update(ordered[:at])
        large.update(ordered[at:])
        found += (key for one in ordered[at:] for key in by_layer[one])
        number += 1
    return found if number >= ROLES and len(large & small) <= 1 else []


def _layer(key: str) -> str:
    found = NUMBER_IN_KEY.search(key)
    return found[0] if found is not None else ""
