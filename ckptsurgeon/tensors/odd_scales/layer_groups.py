"""Finds layers whose tensors are all larger, or all smaller, than in other layers: perhaps from another model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ...util.text import NUMBER_IN_KEY

__all__ = ["larger_layers", "outlying_layers"]

LAYERS, ROLES = 4, 3
"""A role is judged only if it is in at least ``LAYERS`` layers, a list of layers only if it has ``ROLES`` roles."""


def larger_layers(sizes: Mapping[str, float], apart: float) -> list[str]:
    """Return the keys of the tensors in the group of layers with the larger sizes; [] unless there are two groups.

    ``sizes`` are logarithms by key. In a healthy model, the sizes of a single role (key without numbers) may differ
    between two groups of layers, but not the sizes of all roles. So the gap between the groups must be at least
    ``apart`` in all roles of a list of layers, and each group must have at least a third of the layers. One layer may
    be in both groups, since it may be split over two files.
    """
    return [key for roles in _lists(sizes) for key in _larger(roles, apart)]


def outlying_layers(sizes: Mapping[str, float], apart: float, fewest: int = ROLES) -> tuple[list[str], list[str]]:
    """Return (keys of tensors in layers that are far larger than all others, keys of those in far smaller layers).

    ``sizes`` are logarithms by key. In each role (key without numbers) of such a layer, its size is more than ``apart``
    above, or below, the sizes in all other layers. A layer must have at least ``fewest`` roles, and less than a third
    of the layers can be returned as larger, or as smaller.
    """
    lists = _lists(sizes)
    return (
        [key for roles in lists for key in _outlying(roles, apart, fewest)],
        [key for roles in lists for key in _outlying([_negated(one) for one in roles], apart, fewest)],
    )


def _negated(sizes: Mapping[str, float]) -> dict[str, float]:
    return {key: -size for key, size in sizes.items()}


def _outlying(roles: Sequence[Mapping[str, float]], apart: float, fewest: int) -> list[str]:
    """Return the keys of the tensors in layers that are larger than all other layers, in all of their roles.

    The difference must be more than ``apart``, and a layer must have at least ``fewest`` roles.
    """
    above, numbers = dict[str, list[list[str]]](), Counter[str]()
    for sizes in roles:
        by_layer = _by_layer(sizes)
        if len(by_layer) < LAYERS:
            continue
        numbers.update(by_layer.keys())
        ends = {one: [sizes[key] for key in keys] for one, keys in by_layer.items()}
        ordered = sorted(by_layer, key=lambda one: min(ends[one]))
        gaps = {
            at: min(ends[ordered[at]]) - max(max(ends[one]) for one in ordered[:at])
            for at in range(len(ordered) - (len(ordered) - 1) // 3, len(ordered))
        }
        at = next((at for at, gap in gaps.items() if gap > apart), len(ordered))
        for one in ordered[at:]:
            above.setdefault(one, []).append(by_layer[one])
    found = [keys for one, keys in above.items() if len(keys) == numbers[one] >= fewest]
    return [key for keys in found for some in keys for key in some]


def _lists(sizes: Mapping[str, float]) -> list[list[dict[str, float]]]:
    """Return the roles of each list of layers; each role is a dict {key of a tensor: its size}.

    A role is a key without numbers, such as ``layers.#.mlp.weight``.
    """
    lists: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for key, size in sizes.items():
        if found := NUMBER_IN_KEY.search(key):
            lists[key[: found.start()]][NUMBER_IN_KEY.sub("#", key)][key] = size
    return [list(roles.values()) for roles in lists.values()]


def _by_layer(sizes: Mapping[str, float]) -> dict[str, list[str]]:
    by_layer: dict[str, list[str]] = defaultdict(list)
    for key in sizes:
        by_layer[_layer(key)].append(key)
    return by_layer


def _larger(roles: Sequence[Mapping[str, float]], apart: float) -> list[str]:
    """Return the keys of the tensors in the group of layers with the larger sizes; [] unless there are two groups.

    ``roles`` are the roles of one list of layers, as in ``_lists``.
    """
    large, small, found, number = set[str](), set[str](), list[str](), 0
    for sizes in roles:
        by_layer = _by_layer(sizes)
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
