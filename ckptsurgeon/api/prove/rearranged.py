"""Recognises how a changed weight came about: it is another weight of the first network, or its rows have moved.

These are the mistakes of conversions: queries and keys exchanged, the norm of the next layer, heads or halves of heads
in another order, a square matrix that was not transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...analysis.prove.figures import Distance, distance

if TYPE_CHECKING:
    from .network import Network

__all__ = ["order_of", "other_weight"]

NEAR = 4
"""How many rows before and after its place a row is looked for."""
Explained = Callable[[Distance, Tensor], bool]
"""Returns whether rounding explains a distance from these values of the first network."""


def other_weight(networks: Sequence[Network], key: str, is_explained: Explained) -> str:
    """Return the key of the weight in the first network that equals ``key`` of the second one; '' if not just one does.

    Samples of the values choose the weight, and then all its values are compared.
    """
    first, second = networks
    shape, wanted = second.steps[key].shape, second.samples[key]
    alike = [
        other
        for other, sample in first.samples.items()
        if other != key and first.steps[other].shape == shape and is_explained(distance(sample, wanted), sample)
    ]
    if len(alike) != 1:
        return ""
    values = first.read(alike)[alike[0]]
    return alike[0] if is_explained(distance(values, second.read([key])[key]), values) else ""


def order_of(first: Tensor, second: Tensor, is_explained: Explained) -> str:
    """Return the difference in order between two equal weights: "transposed", "rows", "columns", or "" for any other.

    "rows" and "columns" mean that these are in another order. Both weights have the same shape.
    """
    if first.dim() < 2:
        return "rows" if first.dim() and _moved(first[:, None], second[:, None], is_explained) else ""
    if first.dim() == 2 and first.shape[0] == first.shape[1] and is_explained(distance(first.T, second), first):
        return "transposed"
    if _moved(first, second, is_explained):
        return "rows"
    return "columns" if _moved(first.transpose(0, 1), second.transpose(0, 1), is_explained) else ""


def _moved(first: Tensor, second: Tensor, is_explained: Explained) -> bool:
    """Return whether two weights have the same rows in different orders.

    Rows are sorted by a random projection. Rounding may exchange rows that are close there, so that a row is compared
    with its ``NEAR`` neighbours.
    """
    rows, others = (one.reshape(len(one), -1) for one in (first, second))
    if not bool(rows.isfinite().all()):
        return False
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    rows, others = (one[(one @ direction).argsort()] for one in (rows, others))
    matches = _nearest(rows, others)
    return len(torch.unique(matches)) == len(rows) and is_explained(distance(rows, others[matches]), rows)


def _nearest(rows: Tensor, others: Tensor) -> Tensor:
    """Return, for each row, the index of the nearest of the other rows that are at most ``NEAR`` places away."""
    size = len(rows)
    least, matches = torch.full((size,), torch.inf), torch.arange(size)
    for shift in sorted(range(-NEAR, NEAR + 1), key=abs):  # of equal rows, those at the same place match
        here = slice(max(0, -shift), max(0, min(size, size - shift)))
        there = slice(max(0, shift), max(0, min(size, size + shift)))
        far = (rows[here] - others[there]).norm(dim=1)
        is_nearer = far < least[here]
        least[here] = torch.where(is_nearer, far, least[here])
        matches[here] = torch.where(is_nearer, torch.arange(size)[there], matches[here])
    return matches
