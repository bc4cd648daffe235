"""Finds layers of another network of the same sizes: the weights of their norms do not correlate with those of others.

A transformer adds the outputs of all layers to the same hidden units, and some of these units are far larger than
others. In a trained network, the weights of the norms of successive layers therefore correlate over the hidden units:
by 0.41 to 0.95 in all-MiniLM-L6-v2, and by 0.71 to 0.99 in all-mpnet-base-v2 without its last layer. Two networks that
were trained separately have their large units at different places.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from operator import mul
from typing import NamedTuple

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY, escape

__all__ = ["OF_TWO_NETWORKS", "foreign_layer_notes"]

OF_TWO_NETWORKS = "perhaps they are layers of different networks of the same sizes"
CLEAR = 0.3
"""The correlation of successive layers of one network is above this number."""
NEAR, DEVIATIONS = 0.1, 2.5
"""That of unrelated layers is at most ``NEAR``, or this many standard deviations of a correlation by chance."""
WIDTH = 128
"""The fewest hidden units: by chance, the correlation of two unrelated layers of this width is up to 0.22."""
VARIES = 0.01
"""A norm is compared if its standard deviation is above this share of its root mean square."""
LAYERS, LAYERS_ALONE, SHARE, PARTS = 2, 3, 1 / 4, 3
"""The fewest successive layers of a network, also if there is only one norm in each layer; the smallest share of all
layers, since the first or last few of a large network may be unlike the others; and the most such parts."""


class _Borders(NamedTuple):
    """The first layer of each part; the lowest correlation within the parts, and the highest one between them."""

    first: tuple[int, ...]
    within: float
    across: float


_Layers = dict[int, list[float]]
"""The weights of a norm by layer, shifted to a mean of 0 and scaled to a length of 1."""


def foreign_layer_notes(weights: Mapping[str, Sequence[float]], tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield a note for each stack of layers whose norms show that the layers are of two or three networks.

    ``weights`` has the first weights of each norm. Norms that are constant, as in new layers, are not compared.
    """
    for stack, roles in _stacks(weights, tensors).items():
        found = [_borders(layers) for layers in roles if len(layers) >= 2 * LAYERS]
        borders = [one for one in found if one is not None]
        if not borders or len(borders) < len(found):
            continue
        numbers = sorted({number for layers in roles for number in layers})
        first = min(one.first for one in borders)
        if not all(_are_close(one.first, first) for one in borders):
            continue
        fewest = LAYERS if len(found) > 1 else LAYERS_ALONE
        parts = [[number for number in numbers if begin <= number < end] for begin, end in _ranges(first)]
        if min(map(len, parts)) >= max(fewest, SHARE * len(numbers)):
            within, across = min(one.within for one in borders), max(one.across for one in borders)
            yield (
                f"the weights of norms of successive layers correlate with each other (by {within:.2f} or more) in "
                f"each of the parts {_said(parts)} of {escape(stack)}, but not between these parts ({across:.2f} or "
                f"less): {OF_TWO_NETWORKS}"
            )


def _stacks(weights: Mapping[str, Sequence[float]], tensors: Mapping[str, TensorInfo]) -> dict[str, list[_Layers]]:
    """Return the roles of norms of each stack of layers, such as ``encoder.layer``, that have the most usual width."""
    keys = {key: values for key, values in weights.items() if len(values) >= WIDTH}
    templates = Counter(one for key in keys for one, _ in _templates(key))
    roles: dict[str, _Layers] = defaultdict(dict)
    widths: dict[str, set[int]] = defaultdict(set)
    for key, values in keys.items():
        places = list(_templates(key))
        if not places:
            continue
        template, number = max(places, key=lambda one: templates[one[0]])
        widths[template].add(tensors[key].numel)
        if unit := _unit(values):
            roles[template][number] = unit
    roles = {one: layers for one, layers in roles.items() if max(layers) - min(layers) < len(layers)}  # successive ones
    stacks: dict[str, list[tuple[int, _Layers]]] = defaultdict(list)
    for template, layers in roles.items():
        if len(widths[template]) == 1:
            stack = template.partition("#")[0].rstrip(".")
            stacks[stack].append((min(widths[template]), dict(sorted(layers.items()))))
    return {stack: _of_usual_width(found) for stack, found in stacks.items()}


def _of_usual_width(roles: Sequence[tuple[int, _Layers]]) -> list[_Layers]:
    """Return the roles of the width that most roles have: norms of heads and of latents are not of hidden units."""
    ((usual, _),) = Counter(width for width, _ in roles).most_common(1)
    return [role for width, role in roles if width == usual]


def _templates(key: str) -> Iterator[tuple[str, int]]:
    """Yield a key with # in place of each of its numbers in turn, and this number."""
    for found in NUMBER_IN_KEY.finditer(key):
        yield f"{key[: found.start()]}#{key[found.end() :]}", int(found.group())


def _unit(values: Sequence[float]) -> list[float]:
    """Return values shifted to a mean of 0 and scaled to a length of 1; [] if they are about constant."""
    mean = sum(values) / len(values)
    shifted = [one - mean for one in values]
    length = sqrt(sum(map(mul, shifted, shifted)))
    if length <= VARIES * sqrt(sum(map(mul, values, values))):
        return []
    return [one / length for one in shifted]


def _borders(layers: Mapping[int, Sequence[float]]) -> _Borders | None:
    """Return the borders between parts of layers whose norms are unrelated; None if there are no such parts.

    The first and the last layer are left out if they are unlike the next one, as in many sound networks.
    """
    numbers, units = list(layers), list(layers.values())
    near = max(NEAR, DEVIATIONS / sqrt(len(units[0])))
    successive = [sum(map(mul, one, other)) for one, other in pairwise(units)]
    if successive[-1] <= CLEAR:
        del numbers[-1], successive[-1]
    if successive and successive[0] <= CLEAR:
        del numbers[0], successive[0]
    first = tuple(numbers[at + 1] for at, one in enumerate(successive) if abs(one) <= near)
    within = [one for one in successive if abs(one) > near]
    if not 0 < len(first) < PARTS or min(within, default=0) <= CLEAR:
        return None
    parts = [[layers[one] for one in numbers if begin <= one < end] for begin, end in _ranges(first)]
    between = [sum(map(mul, one, other)) for part, after in pairwise(parts) for one in part for other in after]
    if abs(sum(between)) > near * len(between) or max(map(abs, between)) > CLEAR or min(map(len, parts)) < LAYERS:
        return None
    return _Borders(first, min(within), max(map(abs, between)))


def _ranges(first: Sequence[int]) -> Iterator[tuple[float, float]]:
    return pairwise((float("-inf"), *first, float("inf")))


def _are_close(some: Sequence[int], others: Sequence[int]) -> bool:
    """Return whether borders are the same, up to one layer: the border of two files is often within a layer."""
    return len(some) == len(others) and all(abs(one - other) <= 1 for one, other in zip(some, others, strict=True))


def _said(parts: Iterable[Sequence[int]]) -> str:
    *some, last = [f"{part[0]} to {part[-1]}" for part in parts]
    return f"{', '.join(some)} and {last}"
