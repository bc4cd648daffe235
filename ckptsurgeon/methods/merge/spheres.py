"""Merges several models by the mean of their directions on a sphere."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from ...errors import PlanError
from ...tensors.ops.regions import Array
from ...util.text import escape
from ._method import Between, PerModel, merge_method
from ._slices import Merging, Tensors
from .arithmetic.products import angle, gram, lengths
from .linear import combination, shares

__all__ = ["METHODS"]


@merge_method(
    "multislerp",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    compared="mergekit 0.1.5: equal within 1e-6",
    base="optional",
    passes=2,
)
def multislerp(
    tensors: Tensors,
    *,
    weight: PerModel,
    normalize_weights: bool = True,
    eps: Annotated[float, Between(0)] = 1e-8,
) -> Merging:
    """Return the weighted mean of the models' directions from the base (or 0), with their weighted mean length.

    A single model is returned as it is. The paper's last step, from the tangent space at the mean back to the sphere,
    is left out: the weighted sum of the tangents at the mean is zero. If the directions cancel each other, the weighted
    sum of the models is returned for two models, and PlanError is raised for more.
    """
    if tensors.count == 1:
        return combination((1.0,))
    parts = np.array(shares(weight, "normalize_weights") if normalize_weights else weight, np.float64)
    products = gram(tensors)
    norms = lengths(products)
    if not norms.any():
        return combination([0.0] * tensors.count)
    factors = parts / (norms + eps)
    length = _length(factors, products)
    if length < eps and tensors.count == 2:
        return combination(parts)
    if length < eps:
        raise PlanError(
            f"the directions of the tensor {escape(tensors.key)} in the models cancel each other.",
            hint="Give other weights, or another method.",
        )
    return combination(factors / length * (norms @ parts))


@merge_method(
    "karcher", paper="https://arxiv.org/abs/2603.04972", compared="mergekit 0.1.5: equal within 1e-6", passes=2
)
def karcher(
    tensors: Tensors,
    *,
    max_iter: Annotated[int, Between(0)] = 10,
    tol: Annotated[float, Between(0)] = 1e-5,
) -> Merging:
    """Return the Riemannian centre of mass of the models' directions, with their mean length.

    The centre is found in at most ``max_iter`` steps; a step shorter than ``tol`` is the last one. All steps are
    computed from the Gram matrix. Vectors that are not longer than ``tol`` are left out, because they have no
    direction.
    """
    if tensors.count == 1:
        return combination((1.0,))
    products = gram(tensors)
    norms = lengths(products)
    pointing = np.flatnonzero(norms > tol)
    if not len(pointing):
        return combination([0.0] * tensors.count)
    cosines = products[np.ix_(pointing, pointing)] / np.outer(norms[pointing], norms[pointing])
    factors = np.zeros(tensors.count)
    factors[pointing] = _centre(cosines, max_iter, tol) / norms[pointing] * norms.mean()
    return combination(factors)


def _centre(cosines: Array, steps: int, tol: float) -> Array:
    """Return a factor for each of several unit vectors: their weighted sum is the vectors' mean on the sphere.

    ``cosines`` has the dot products of the vectors. The mean is found in at most ``steps`` steps.
    """
    count = len(cosines)
    mean = np.full(count, 1 / count)
    length = _length(mean, cosines)
    mean = mean / length if length >= tol else np.eye(count)[0]
    for _ in range(steps):
        step = _tangent(mean, cosines, tol)
        length = _length(step, cosines)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean /= max(_length(mean, cosines), tol)
    return mean


def _tangent(mean: Array, cosines: Array, tol: float) -> Array:
    """Return the mean of the arcs from ``mean`` to each vector, as a vector in the tangent space at ``mean``.

    All vectors are weighted sums of the same unit vectors, and are given by these weights; ``cosines`` are the dot
    products of the unit vectors. A vector that equals the mean, or is opposite to it, is left out: its arc has no
    direction.
    """
    step = np.zeros(len(mean))
    for vector, cosine in enumerate(cosines @ mean):
        theta = angle(cosine)
        if tol <= theta <= np.pi - tol:
            arc = -float(cosine) * mean
            arc[vector] += 1
            step += theta / np.sin(theta) / len(mean) * arc
    return step


def _length(factors: Array, products: Array) -> float:
    """Return the norm of the sum of vectors times ``factors``; ``products`` has the dot products of the vectors."""
    return float(np.sqrt(max(float(factors @ products @ factors), 0.0)))


METHODS = (multislerp, karcher)
