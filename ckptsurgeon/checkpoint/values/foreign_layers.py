"""Finds layers that come from another network of the same sizes: their norms do not correlate with other layers' norms.

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
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import NUMBER_IN_KEY, escape

__all__ = ["OF_TWO_NETWORKS", "foreign_layer_notes"]

OF_TWO_NETWORKS = "perhaps they are layers of different networks of the same sizes"
CLEAR = 0.3
"""Successive layers belong to one network if the correlation of their norms is above this number."""
NEAR, DEVIATIONS = 0.1, 2.5
"""Layers are unrelated if the correlation is at most ``NEAR`` or ``DEVIATIONS`` / sqrt(width), whichever is larger."""
WIDTH = 128
"""Norms with fewer hidden units are not compared: with this many, unrelated layers correlate by up to 0.22."""
VARIES = 0.01
"""A norm is compared if its standard deviation is above this share of its root mean square."""
LAYERS, LAYERS_ALONE, SHARE, PARTS = 2, 3, 1 / 4, 3
"""Limits for the parts of a stack of layers that come from different networks.

A part has at least ``LAYERS`` layers (``LAYERS_ALONE`` if only one norm of each layer is compared), and at least the
share ``SHARE`` of all layers: the first or last few layers of a large network may be unlike the others. There are at
most ``PARTS`` parts.
"""


class _Borders(NamedTuple):
    """Borders between parts of a list of layers: the first layer of each later part.

    ``within`` is the lowest correlation of layers within the parts, ``across`` the highest one between the parts.
    """

    first: tuple[int, ...]
    within: float
    across: float


_Layers = dict[int, list[float]]
"""{index of a layer: the weights of a norm in it, shifted to a mean of 0 and scaled to a length of 1}."""


@notes_of(NoteKind.MIXED_LAYERS)
def foreign_layer_notes(weights: Mapping[str, Sequence[float]], tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield a note for each stack of layers whose norms show that the layers come from two or three networks.

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
    """Return the roles (keys without numbers) of norms in each stack of layers; only roles of the usual width."""
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
    """Return the roles whose norms have the most frequent width: other norms do not normalise hidden units."""
    ((usual, _),) = Counter(width for width, _ in roles).most_common(1)
    return [role for width, role in roles if width == usual]


def _templates(key: str) -> Iterator[tuple[str, int]]:
    """Yield (key with # in place of one of its numbers, this number) for each number in a key."""
    for found in NUMBER_IN_KEY.finditer(key):
        yield f"{key[: found.start()]}#{key[found.end() :]}", int(found.group())


def _unit(values: Sequence[float]) -> list[float]:
    """Return values shifted to a mean of 0 and scaled to a length of 1; [] if they are nearly constant."""
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
    """Return whether two lists of borders differ by at most one layer; a file often ends within a layer."""
    return len(some) == len(others) and all(abs(one - other) <= 1 for one, other in zip(some, others, strict=True))


def _said(parts: Iterable[Sequence[int]]) -> str:
    *some, last = [f"{part[0]} to {part[-1]}" for part in parts]
    return f"{', '.join(some)} and {last}"
