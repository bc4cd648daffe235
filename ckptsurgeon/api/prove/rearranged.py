"""Recognises why a weight differs: it equals another weight of the first network, or its rows or columns have moved.

Wrong conversions cause such differences: queries and keys exchanged, the norm of the next layer, heads or halves of
heads in another order, a square matrix that was not transposed.
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
"""A row is compared with this many rows before and after its position."""
Explained = Callable[[Distance, Tensor], bool]
"""A function of a distance and values of the first network; it returns whether rounding explains the distance."""


def other_weight(networks: Sequence[Network], key: str, is_explained: Explained) -> str:
    """Return the key of the first network's weight that equals the second's ``key``; '' unless exactly one weight does.

    The weight is found by samples of the values; then all its values are compared.
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
    """Return "transposed", "rows" or "columns" if two weights differ only in this way; "" for any other difference.

    "rows" means that the rows are in another order, and "columns" that the columns are. Both weights have the same
    shape.
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

    Rows are sorted by a random projection. Rounding may exchange rows with similar projections, so each row is compared
    with ``NEAR`` neighbours on each side.
    """
    rows, others = (one.reshape(len(one), -1) for one in (first, second))
    if not bool(rows.isfinite().all()):
        return False
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    rows, others = (one[(one @ direction).argsort()] for one in (rows, others))
    matches = _nearest(rows, others)
    return len(torch.unique(matches)) == len(rows) and is_explained(distance(rows, others[matches]), rows)


def _nearest(rows: Tensor, others: Tensor) -> Tensor:
    """Return, for each of ``rows``, the index of the most similar of those ``others`` at most ``NEAR`` places away."""
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
