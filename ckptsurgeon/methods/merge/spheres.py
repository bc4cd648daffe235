"""Means of several models on the sphere of their directions."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from ...errors import PlanError
from ...tensors.ops.regions import Array
from ...util.text import escape
from ._method import Merging, Tensors, merge_method
from ._parameters import Between, PerModel
from .arithmetic.products import angle, combination, gram, lengths, shares

__all__ = ["METHODS"]


@merge_method(
    "multislerp", paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea", base="optional", passes=2
)
def multislerp(
    tensors: Tensors,
    *,
    weight: PerModel,
    normalize_weights: bool = True,
    eps: Annotated[float, Between(0)] = 1e-8,
) -> Merging:
    """Return the weighted mean of the models' directions, in their weighted mean length; the base is the centre.

    One model is returned as it is. The step that carries the tangents at the mean back to the sphere is not here: their
    weighted sum is zero, because the mean is where it is.
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
            f"the directions of {escape(tensors.key)} in the models cancel each other.",
            hint="Give other weights, or another method.",
        )
    return combination(factors / length * (norms @ parts))


@merge_method("karcher", paper="https://arxiv.org/abs/2603.04972", passes=2)
def karcher(
    tensors: Tensors,
    *,
    max_iter: Annotated[int, Between(0)] = 10,
    tol: Annotated[float, Between(0)] = 1e-5,
) -> Merging:
    """Return the Riemannian centre of mass of the models' directions, in their mean length.

    It is approached in at most ``max_iter`` steps, until one is shorter than ``tol``; all of them are taken in the Gram
    matrix. A model shorter than ``tol`` has no direction.
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
    """Return the mean of unit vectors on the sphere, as a unit vector, in factors of them."""
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
    """Return the mean of the arcs from ``mean`` to each vector, in its tangent space.

    For a vector at the mean itself, or on the opposite side of the sphere, there is no direction.
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
    """Return the norm of a sum of vectors with these factors."""
    return float(np.sqrt(max(float(factors @ products @ factors), 0.0)))


METHODS = (multislerp, karcher)
