"""Measures of the difference of two tensors, for ``prove``."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Distance", "Prediction", "distance", "prediction"]


@dataclass(frozen=True)
class Distance:
    """The difference of two tensors of the same shape.

    ``error`` is the norm of the difference divided by the norm of the first tensor. ``cosine`` is the cosine of the
    angle between the two, as flat vectors. ``largest`` is the largest absolute difference of two elements. ``same`` is
    true if all bits are equal. If a NaN or an infinity is in only one of the tensors, ``error`` and ``largest`` are
    infinite. If only the first tensor is zero, ``error`` is infinite.
    """

    error: float
    cosine: float
    largest: float
    same: bool

    @property
    def is_finite(self) -> bool:
        """False if a NaN or an infinity is in only one of the tensors, so that no difference can be computed."""
        return isfinite(self.largest)


def distance(first: Tensor, second: Tensor) -> Distance:
    """Return the difference of two tensors of the same shape."""
    import torch

    if torch.equal(_bits(first), _bits(second)):
        return Distance(0.0, 1.0, 0.0, same=True)
    a, b = first.double().flatten(), second.double().flatten()
    finite = a.isfinite() & b.isfinite()
    odd = ~finite & ~((a == b) | (a.isnan() & b.isnan()))
    if bool(odd.any()):
        return Distance(float("inf"), 0.0, float("inf"), same=False)
    a, b = a[finite], b[finite]
    apart, norms = a - b, (a.norm(), b.norm())
    largest = float(apart.abs().max()) if len(apart) else 0.0
    if largest == 0.0:  # equal values whose bits differ: 0.0 and -0.0, or two kinds of NaN
        return Distance(0.0, 1.0, 0.0, same=False)
    error = float(apart.norm() / norms[0]) if norms[0] > 0 else float("inf")
    cosine = float(a @ b / (norms[0] * norms[1])) if min(norms) > 0 else 0.0
    return Distance(error, cosine, largest, same=False)


def _bits(tensor: Tensor) -> Tensor:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True)
class Prediction:
    """The difference of two models' predictions of the next token (or class).

    ``divergence`` is the mean of KL(first ‖ second) over all positions, in nats. ``agreement`` is the share of
    positions at which both models have the same most likely token. ``places`` is the number of positions.
    """

    divergence: float
    agreement: float
    places: int


def prediction(first: Tensor, second: Tensor) -> Prediction:
    """Return the difference of the predictions in two tensors of logits; the last dimension has an entry per token."""
    a, b = (one.double().log_softmax(-1) for one in (first, second))
    terms = (a.exp() * (a - b)).masked_fill(a.isneginf(), 0)  # a token that the first model excludes counts nothing
    divergence = float(terms.sum(-1).mean())
    agreement = float((a.argmax(-1) == b.argmax(-1)).double().mean())
    return Prediction(max(divergence, 0.0), agreement, a[..., 0].numel())
