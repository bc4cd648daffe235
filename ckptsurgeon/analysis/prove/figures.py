"""How far two tensors are apart: the figures of ``prove``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Distance", "Prediction", "distance", "prediction"]


@dataclass(frozen=True)
class Distance:
    """How far a tensor is from another of the same shape.

    ``error`` is the norm of the difference as a share of the norm of the first, ``cosine`` that of the angle between
    them, ``largest`` the largest difference of two elements. ``same`` says that all bits agree. A NaN or an infinity
    that only one of them has makes the error infinite.
    """

    error: float
    cosine: float
    largest: float
    same: bool


def distance(first: Tensor, second: Tensor) -> Distance:
    """Return how far ``second`` is from ``first``; both have the same shape."""
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
    if largest == 0.0:  # both have the same NaN
        return Distance(0.0, 1.0, 0.0, same=False)
    error = float(apart.norm() / norms[0]) if norms[0] > 0 else float("inf")
    cosine = float(a @ b / (norms[0] * norms[1])) if min(norms) > 0 else 0.0
    return Distance(error, cosine, largest, same=False)


def _bits(tensor: Tensor) -> Tensor:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True)
class Prediction:
    """How far two models' predictions of the next token (or class) are apart.

    ``divergence`` is the mean Kullback-Leibler divergence of the second from the first, in nats; ``agreement`` the
    share of places at which both have the same most likely token; ``places`` their number.
    """

    divergence: float
    agreement: float
    places: int


def prediction(first: Tensor, second: Tensor) -> Prediction:
    """Return how far the predictions of two tensors of logits (…, tokens) are apart."""
    a, b = (one.double().log_softmax(-1) for one in (first, second))
    divergence = float((a.exp() * (a - b)).sum(-1).mean())
    agreement = float((a.argmax(-1) == b.argmax(-1)).double().mean())
    return Prediction(max(divergence, 0.0), agreement, a[..., 0].numel())
