"""TSV-M: merges the largest singular vectors of the models' changes, after making them orthogonal to each other."""

from __future__ import annotations

from functools import partial

from ...tensors.ops.regions import Array
from ._method import merge_method
from ._slices import Merging, Tensors
from .arithmetic.orthogonal import nearest_orthogonal, orthogonal_sum
from .arithmetic.spectra import (
    Changes,
    components,
    factorised,
    held_with,
    is_matrix,
    joined,
    mean_of_changes,
    product,
)

__all__ = ["METHODS"]


def _doubles(rows: int, columns: int, inputs: int) -> int:
    """Return how many numbers are in memory: the vectors of all models, and the orthogonal vectors."""
    models = inputs - 1
    return 2 * (rows + columns) * models * _rank(min(rows, columns), models)


@merge_method(
    "tsv_m",
    paper="https://arxiv.org/abs/2412.00081",
    compared="FusionBench 0.2.33: equal within 1e-5 (float64: 1e-10)",
    base="required",
    passes=2,
    held=partial(held_with, _doubles),
)
def tsv_m(tensors: Tensors, *, lambda_: float = 1.0, matrices: bool = True) -> Merging | Array:
    """Return the base plus the sum of the models' low-rank changes, whose singular vectors are made orthogonal.

    Of each of T changes, the share 1/T with the largest singular values is kept, at least one. The left vectors of all
    changes are replaced by the nearest orthonormal vectors, and so are the right vectors. Vectors whose singular value
    is zero (up to rounding) are left out, since rounding alone decides them. Only tensors of two dimensions are
    matrices; other tensors get the mean of the changes, and so do all tensors if ``matrices`` is off. ``lambda``
    multiplies the change.
    """
    if tensors.count == 1 or not is_matrix(tensors.shape, {"matrices": matrices}):
        return mean_of_changes(tensors, lambda_)
    return factorised(tensors, lambda_, _orthogonalised)


def _rank(short: int, models: int) -> int:
    """Return the number of singular vectors of each model to merge; ``short`` is the shorter side of the matrix."""
    return max(1, short // models)


def _orthogonalised(changes: Changes) -> Array:
    rank = _rank(min(changes.at.models[0].shape), len(changes))
    several = [components(changes, changes[model], rank) for model in range(len(changes))]
    made = orthogonal_sum(changes, *several) if len(several) == 2 else None
    if made is not None:
        return made
    every = joined(changes.xp, several)
    del several  # not both in memory
    left, right = nearest_orthogonal(changes, every.left), nearest_orthogonal(changes, every.right)
    return product(changes, left * every.values, right)


METHODS = (tsv_m,)
