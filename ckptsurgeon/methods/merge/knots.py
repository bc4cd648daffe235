"""KnOTS: TIES, or DARE with TIES, in a basis that all models share; for changes of low rank, such as adapters.

In a change of low rank, everything that was learned is spread over many elements, so the sign of an element says
little. The left singular vectors U of all changes side by side are a basis of all of them, and U^T C_i is the change of
model i in this basis (in the paper: the singular values times the part V_i of the right singular vectors). A weighted
sum of the changes is the same in any basis; so KnOTS would not change methods that only add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Tensors
from .arithmetic.shared_basis import dare_ties_in_basis, ties_in_basis
from .arithmetic.spectra import Changes, factorised, held_with, is_matrix, left_vectors, mean_of_changes, product

__all__ = ["METHODS"]


def _doubles(rows: int, columns: int, inputs: int) -> int:
    """Return how many numbers are in memory: the changes in the shared basis, the results of TIES, and sorted values.

    The shared basis is the basis of a matrix with the columns of all models.
    """
    models = inputs - 1
    return (2 * models + 4) * rows * columns + 6 * rows**2 + 4 * models * rows * columns


@merge_method(
    "knots_ties",
    paper="https://arxiv.org/abs/2410.19735",
    compared="FusionBench 0.2.33: equal within 1e-5 (float64: 1e-10)",
    base="required",
    passes=2,
    held=partial(held_with, _doubles),
)
def knots_ties(
    tensors: Tensors,
    *,
    density: Annotated[float, Between(0, 1)] = 0.2,
    lambda_: float = 1.0,
    matrices: bool = True,
) -> Merging | Array:
    """Return the base plus the mean of the largest changes that have the sign of the majority, in a shared basis.

    The basis consists of the left singular vectors of all changes side by side, without vectors whose singular value is
    zero (up to rounding). In this basis, the share ``density`` of each change with the largest magnitudes is kept: at
    least one element, unless ``density`` is 0. Changes against the sign of the sum are dropped. Only tensors of two
    dimensions are matrices; other tensors get the mean of the changes, and so do all tensors if ``matrices`` is off.
    ``lambda`` multiplies the change.
    """
    if (tensors.count == 1 and density == 1) or not is_matrix(tensors.shape, {"matrices": matrices}):
        return mean_of_changes(tensors, lambda_)

    def merge(changes: Changes) -> Array:
        return _merged(changes, lambda parts: ties_in_basis(changes.xp, parts, density, changes.nothing))

    return factorised(tensors, lambda_, merge)


@merge_method(
    "knots_dare_ties",
    paper="https://arxiv.org/abs/2410.19735",
    compared="the paper's formula: equal within 1e-10 in float64",
    base="required",
    passes=2,
    held=partial(held_with, _doubles),
)
def knots_dare_ties(
    tensors: Tensors,
    *,
    density: Annotated[float, Between(0, 1)] = 1.0,
    lambda_: float = 1.0,
    matrices: bool = True,
) -> Merging | Array:
    """Return the base plus the mean of randomly kept changes that have the sign of the majority, in a shared basis.

    The basis is the same as in ``knots_ties``. In this basis, each value of a change is kept with the probability
    ``density`` and divided by this probability. Changes against the sign of the sum are dropped. Only tensors of two
    dimensions are matrices; other tensors get the mean of the changes, and so do all tensors if ``matrices`` is off.
    ``lambda`` multiplies the change.
    """
    if (tensors.count == 1 and density == 1) or not is_matrix(tensors.shape, {"matrices": matrices}):
        return mean_of_changes(tensors, lambda_)

    def merge(changes: Changes) -> Array:
        def uniform(model: int, shape: tuple[int, ...]) -> Array:
            return tensors.uniform(changes.at, model)[
                : shape[0]
            ]  # the basis has no more vectors than a tensor has rows

        return _merged(changes, lambda parts: dare_ties_in_basis(changes.xp, parts, density, changes.nothing, uniform))

    return factorised(tensors, lambda_, merge)


def _merged(changes: Changes, merge: Callable[[Sequence[Array]], Array]) -> Array:
    """Return the result of ``merge``, which gets all changes in the basis that they share."""
    basis = left_vectors(changes)
    if not basis.shape[1]:
        return changes[0]
    return product(changes, basis, merge([basis.T @ changes[model] for model in range(len(changes))]))


METHODS = (knots_ties, knots_dare_ties)
