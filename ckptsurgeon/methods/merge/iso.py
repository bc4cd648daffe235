"""Iso-C and Iso-CTS: isotropic merging, in which all directions of the merged change have one singular value."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Tensors
from .arithmetic.orthogonal import nearest_orthogonal
from .arithmetic.spectra import (
    Changes,
    Components,
    components,
    factorised,
    held_with,
    is_matrix,
    joined,
    mean_of_changes,
    product,
)

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/2502.04959"


@merge_method(
    "iso_c",
    paper=_PAPER,
    compared="FusionBench 0.2.33: equal within 1e-5 (float64: 1e-10)",
    base="required",
    passes=2,
    held=partial(held_with, lambda rows, columns, inputs: rows * columns),
)
def iso_c(tensors: Tensors, *, lambda_: float = 1.0, matrices: bool = True) -> Merging | Array:
    """Return the base plus the sum of the models' changes, with all singular values of the sum replaced by their mean.

    Singular values that are zero (up to rounding) stay zero, and do not count in the mean: their directions are not
    defined. Only tensors of two dimensions are matrices; other tensors get the mean of the changes, and so do all
    tensors if ``matrices`` is off. ``lambda`` multiplies the change.
    """
    if not is_matrix(tensors.shape, {"matrices": matrices}):
        return mean_of_changes(tensors, lambda_)

    def merge(changes: Changes) -> Array:
        total = changes.total()
        return _isotropic(changes, components(changes, total, min(total.shape)))

    return factorised(tensors, lambda_, merge)


def _isotropic(changes: Changes, found: Components) -> Array:
    """Return the matrix with the singular vectors in ``found``, each with the mean of all their singular values."""
    number = len(found.values)
    mean = float(changes.xp.sum(found.values)) / number if number else 0.0
    return product(changes, found.left * mean, found.right)


def _doubles(rows: int, columns: int, inputs: int) -> int:
    """Return how many numbers ``iso_cts`` has in memory.

    These are two matrices; the singular vectors of all models, first separately and then in one array; and the
    orthogonal vectors that are made of them.
    """
    return 2 * rows * columns + 3 * (rows + columns) * min(rows, columns)


@merge_method(
    "iso_cts",
    paper=_PAPER,
    compared="FusionBench 0.2.33: equal within 1e-5 (float64: 1e-10)",
    base="required",
    passes=2,
    held=partial(held_with, _doubles),
)
def iso_cts(
    tensors: Tensors,
    *,
    common_space: Annotated[float, Between(0, 1)] = 0.8,
    lambda_: float = 1.0,
    matrices: bool = True,
) -> Merging | Array:
    """Return the base plus the common and the models' own directions of change, with one singular value for all.

    The share ``common_space`` of the directions is common: these are the directions of the sum of the changes with the
    largest singular values. Each model contributes an equal number of the other directions: the largest directions of
    its change that are outside the common directions. All directions are made orthogonal, and get the mean of their
    singular values. Directions that are zero (up to rounding) are left out. Only tensors of two dimensions are
    matrices; other tensors get the mean of the changes, and so do all tensors if ``matrices`` is off. ``lambda``
    multiplies the change.
    """
    if not is_matrix(tensors.shape, {"matrices": matrices}):
        return mean_of_changes(tensors, lambda_)

    def merge(changes: Changes) -> Array:
        every = _common_and_own(changes, common_space)
        left, right = nearest_orthogonal(changes, every.left), nearest_orthogonal(changes, every.right)
        return _isotropic(changes, Components(left, every.values, right))

    return factorised(tensors, lambda_, merge)


def _common_and_own(changes: Changes, share: float) -> Components:
    common_rank, own_rank = _ranks(min(changes.at.models[0].shape), len(changes), share)
    common = components(changes, changes.total(), common_rank)
    own = []
    for model in range(len(changes)):
        change = changes[model]
        size = float(changes.xp.linalg.vector_norm(change))
        change -= common.left @ (common.left.T @ change)
        own.append(components(changes, change, own_rank, least=changes.nothing * size))
    return joined(changes.xp, [*own, common])


def _ranks(short: int, models: int, share: float) -> tuple[int, int]:
    """Return the numbers of common directions and of each model's directions; ``short`` is a matrix's shorter side.

    All models have the same number of directions, so the share of common directions may differ a little from ``share``.
    """
    own = min(round((short - int(short * share)) / models), short // models)
    return short - own * models, own


METHODS = (iso_c, iso_cts)
