"""Pairs the layers of two networks of different depths, so that layers with the same weights are compared.

A network may have new layers before others, or lack some: then layers with the same number are unrelated.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...util.text import listing
from .blocks import block_names

if TYPE_CHECKING:
    from .blocks import Outputs, Recording
    from .network import Network

__all__ = ["with_paired_layers"]

MATRICES, VALUES = 8, 256
"""Layers are compared by at most ``VALUES`` values of at most ``MATRICES`` matrices."""
APART = 0.5
"""Matrices are alike if the norm of their difference is at most this multiple of the first one's norm.

Rounding to codes of 4 bits changes weights by a tenth; the difference of unrelated weights has 1.4 times their norm.
"""
MOSTLY = 0.5
"""More than this share of the matrices of two layers, and of all layers of the shallower network, must be alike."""
SHOWN = 8
_NUMBERED = re.compile(r"(.+)\.(\d+)")

Layers = dict[str, dict[str, Tensor]]
"""{number of a layer: {end of a matrix's key: some of its values}}"""


def with_paired_layers(
    networks: list[Network], runs: list[Recording]
) -> tuple[list[Network], list[Recording], list[str]]:
    """Return (networks, runs, notes), in which paired layers of the second network have the names of the first.

    Layers that have no partner in the first network are left out of the second run. There is a note for each list of
    layers in which paired layers had different numbers.
    """
    first, second = networks
    lists = _lists(first), _lists(second)
    renamed, notes = dict[str, str](), list[str]()
    for prefix in (one for one in lists[0] if one in lists[1] and len(lists[0][one]) != len(lists[1][one])):
        found = _pairs(*(_matrices(one, prefix, own[prefix]) for one, own in zip(networks, lists, strict=True)))
        if any(one != other for one, other in found):
            partners = {other: one for one, other in found}
            renamed |= {f"{prefix}.{n}": f"{prefix}.{partners[n]}" if n in partners else "" for n in lists[1][prefix]}
            notes.append(_note(prefix, found, lists[1][prefix]))
    if not renamed:
        return networks, runs, []
    outputs = _renamed_outputs(runs[1].outputs, renamed)
    return [first, second.renamed(_keys(second, renamed))], [runs[0], replace(runs[1], outputs=outputs)], notes


def _lists(network: Network) -> Mapping[str, list[str]]:
    """Return {prefix: numbers of its layers} for the lists of layers of a network."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in block_names(network.module):
        if numbered := _NUMBERED.fullmatch(name):
            found[numbered[1]].append(numbered[2])
    return found


def _matrices(network: Network, prefix: str, numbers: Sequence[str]) -> Layers:
    found: Layers = {number: {} for number in numbers}
    for key, sample in network.samples.items():
        number, _, end = key.removeprefix(f"{prefix}.").partition(".")
        is_matrix = len(network.steps[key].shape) > 1 and sample.is_floating_point()
        if key.startswith(f"{prefix}.") and number in found and is_matrix:
            found[number][end] = sample
    return found


def _pairs(first: Layers, second: Layers) -> list[tuple[str, str]]:
    """Return the pairs (number in the first list, number in the second) of the most similar layers, in ascending order.

    Returns [] unless most layers of the shorter list have a partner.
    """
    likeness = _likeness(first, second)
    rows, columns = likeness.shape
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for row in reversed(range(rows)):
        for column in reversed(range(columns)):
            paired = best[row + 1][column + 1] + float(likeness[row, column])
            best[row][column] = max(paired, best[row + 1][column], best[row][column + 1])
    found = list(_path(best, likeness, list(first), list(second)))
    return found if len(found) > MOSTLY * min(rows, columns) else []


def _path(
    best: Sequence[Sequence[float]], likeness: Tensor, first: list[str], second: list[str]
) -> Iterator[tuple[str, str]]:
    row = column = 0
    while row < len(first) and column < len(second):
        here = best[row][column]
        if likeness[row, column] > 0 and here == best[row + 1][column + 1] + float(likeness[row, column]):
            yield first[row], second[column]
            row, column = row + 1, column + 1
        elif here == best[row + 1][column]:
            row += 1
        else:
            column += 1


def _likeness(first: Layers, second: Layers) -> Tensor:
    """Return a matrix (layers of the first list, layers of the second list) with the similarity of each pair of layers.

    The similarity is the share of their matrices that are alike, from 0 to 1; a share of ``MOSTLY`` or less becomes 0.
    """
    ends = [*islice((end for end in next(iter(first.values()), {}) if _is_in(end, first, second)), MATRICES)]
    total = torch.zeros(len(first), len(second))
    for end in ends:
        one, other = (torch.stack([layer[end][:VALUES] for layer in layers.values()]) for layers in (first, second))
        norms = one.norm(dim=1, keepdim=True)
        total += (torch.cdist(one, other) <= APART * norms).float()
    share = total / max(1, len(ends))
    return torch.where(share > MOSTLY, share, 0.0)


def _is_in(end: str, first: Layers, second: Layers) -> bool:
    """Return whether all layers of both lists have a matrix with the ending ``end``, and all in the same shape."""
    sizes = {layer[end].shape if end in layer else None for layers in (first, second) for layer in layers.values()}
    return len(sizes) == 1 and None not in sizes


def _renamed_outputs(outputs: Outputs, renamed: Mapping[str, str]) -> Outputs:
    names = {place: renamed.get(place[0], place[0]) for place in outputs}
    return {
        (names[place], *place[1:]): one for place, one in outputs.items() if names[place] or place[0] not in renamed
    }


def _keys(network: Network, renamed: Mapping[str, str]) -> dict[str, str]:
    """Return {key: new key} for the tensors of renamed layers; a layer without a partner gets a unique name."""
    found = {}
    for key in network.steps:
        for name, new in renamed.items():
            if key.startswith(f"{name}."):
                found[key] = f"{new or f'{name} of the second network'}{key[len(name) :]}"
    return found


def _note(prefix: str, pairs: Sequence[tuple[str, str]], numbers: Sequence[str]) -> str:
    first, second = ([pair[at] for pair in pairs] for at in (0, 1))
    alone = [number for number in numbers if number not in second]
    compared = f"{_listed(first)} of the first network with {_listed(second)} of the second"
    others = f"; {_listed(alone)} of the second network are not compared" if alone else ""
    return f"{prefix}: layers with the same weights are compared, {compared}{others}"


def _listed(numbers: list[str]) -> str:
    return listing(numbers, SHOWN, where="")
