"""WUDI: merges changes so that, for the inputs of one model, the changes of the other models have little effect.

The paper minimises L(W) = sum_i |(W - C_i) C_i^T|^2 / |C_i|^2 over the merged change W of a matrix, where C_i is the
change of model i, and |.| is the Frobenius norm. The paper starts at S = sum_i C_i and takes 300 steps of Adam. L is a
quadratic function, so one step of Newton's method leads from S to its minimum:

    W = S + sum_i (C_i - S) G_i (sum_i G_i)^+,  G_i = C_i^T C_i / |C_i|^2

With the pseudo-inverse, W is the minimum nearest to S. Gradient descent from S converges to the same minimum. Adam with
300 small steps stops on the way there, at a place that depends on the size of the weights.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Tensors
from .arithmetic.spectra import Changes, factorised, held_with, is_matrix, mean_of_changes, product

__all__ = ["METHODS"]

_NOTHING = 1e-10
"""Eigenvalues up to this share of the largest one count as zero. Near this share, rounding errors are 1e-6 of W."""


def _doubles(rows: int, columns: int, inputs: int) -> int:
    """Return how many numbers are in memory: matrices of the tensor's shape, and square matrices for LAPACK.

    If the tensor has few rows, there are also the changes of all models, one below the other (``_by_rows``).
    """
    side = _side(rows, columns, inputs - 1)
    return 4 * rows * columns + (7 * side**2 if side == columns else 6 * side**2 + 2 * side * (rows + columns))


@merge_method(
    "wudi",
    paper="https://arxiv.org/abs/2503.08099",
    compared="FusionBench 0.2.33, which stops before the minimum; NumPy's minimum: equal within 1e-5 (float64: 1e-8)",
    base="required",
    passes=2,
    held=partial(held_with, _doubles),
)
def wudi(
    tensors: Tensors, *, ridge: Annotated[float, Between(0)] = 0.0, lambda_: float = 1.0, matrices: bool = True
) -> Merging | Array:
    """Return the base plus the change W whose difference to each change C_i is smallest for the inputs of model i.

    The inputs of model i are taken to be the rows of C_i. W minimises the sum of |(W - C_i) C_i^T|^2 / |C_i|^2 exactly;
    the paper approaches the minimum with 300 steps of Adam. If there are several such W, the nearest to S is taken: S
    is the sum of the changes, with which the paper starts. ``ridge`` adds this number times |W - S|^2, in units of the
    mean eigenvalue, so that W stays nearer to S. A model without change has no influence. Only tensors of two
    dimensions are matrices; other tensors get the mean of the changes, and so do all tensors if ``matrices`` is off.
    ``lambda`` multiplies the change.
    """
    if tensors.count == 1 or not is_matrix(tensors.shape, {"matrices": matrices}):
        return mean_of_changes(tensors, lambda_)
    return factorised(tensors, lambda_, lambda changes: _minimum(changes, ridge))


def _side(rows: int, columns: int, models: int) -> int:
    """Return the size of the square matrix to factorise: the number of columns, or of all models' rows if smaller."""
    return min(columns, models * rows)


def _minimum(changes: Changes, ridge: float) -> Array:
    start = changes.total()
    sizes = [float(changes.xp.linalg.vector_norm(changes[model])) for model in range(len(changes))]
    moved = [model for model, size in enumerate(sizes) if size]
    if not moved:
        return start
    rows, columns = start.shape
    damping = ridge * len(moved) / columns  # each G_i has the trace 1
    step = _by_columns if _side(rows, columns, len(changes)) == columns else _by_rows
    start += step(changes, start, {model: sizes[model] for model in moved}, damping)
    return start


def _by_columns(changes: Changes, start: Array, sizes: dict[int, float], damping: float) -> Array:
    """Return the step from ``start`` to the minimum, computed from the inner products of the columns of all changes.

    ``sizes`` maps the index of each model to |C_i|, and ``damping`` is added to the eigenvalues.
    """
    xp, columns = changes.xp, start.shape[1]
    slope, gram = xp.zeros_like(start), xp.zeros((columns, columns), dtype=xp.float64)
    for model, size in sizes.items():
        change = changes[model] / size
        own = change.T @ change
        slope += (changes[model] - start) @ own
        gram += own
    inverse = _inverse(xp, gram, damping)
    if inverse is not None:
        return slope @ inverse  # type: ignore[no-any-return]
    scaled, turns = _by_eigenvectors(xp, slope, gram, damping)
    return product(changes, scaled, turns.T)


def _by_rows(changes: Changes, start: Array, sizes: dict[int, float], damping: float) -> Array:
    """Return the result of ``_by_columns``, computed from the inner products of all rows of all changes.

    With A = all C_i / |C_i|, one below the other, sum_i G_i = A^T A, and A (A^T A)^+ = (A A^T)^+ A.
    """
    xp = changes.xp
    rows = xp.concatenate([changes[model] / size for model, size in sizes.items()])
    own = xp.concatenate(
        [(changes[model] - start) @ (changes[model] / size).T for model, size in sizes.items()], axis=1
    )
    gram = rows @ rows.T
    inverse = _inverse(xp, gram, damping)
    if inverse is None:
        scaled, turns = _by_eigenvectors(xp, own, gram, damping)
        step: Array = scaled @ (turns.T @ rows)
    else:
        step = own @ inverse @ rows
    return step


def _inverse(xp: ModuleType, gram: Array, damping: float) -> Array | None:
    """Return the inverse of ``gram`` plus ``damping`` on its diagonal; None if an eigenvalue counts as zero.

    Inverting takes a third of the time of computing eigenvectors. To bound the smallest eigenvalue: the norm of the
    inverse is at least 1 / the smallest eigenvalue, and the norm of ``gram`` is at least the largest eigenvalue.
    """
    damped = gram + damping * xp.eye(len(gram), dtype=xp.float64)
    try:
        least = float(xp.min(xp.diagonal(xp.linalg.cholesky(damped)))) ** 2  # not below the smallest eigenvalue
        size = float(xp.linalg.vector_norm(damped))
        if least <= _NOTHING * size:
            return None
        inverse: Array = xp.linalg.inv(damped)
    except xp.linalg.LinAlgError:
        return None
    return inverse if float(xp.linalg.vector_norm(inverse)) * size * _NOTHING < 1 else None


def _by_eigenvectors(xp: ModuleType, slope: Array, gram: Array, damping: float) -> tuple[Array, Array]:
    """Return L and Q such that L Q^T = ``slope`` (``gram`` + ``damping``)^+, without the eigenvalues that are zero."""
    squares, turns = xp.linalg.eigh(gram)
    first = sum(one <= _NOTHING * float(squares[-1]) for one in squares.tolist())
    return slope @ turns[:, first:] / (squares[first:] + damping), turns[:, first:]


METHODS = (wudi,)
