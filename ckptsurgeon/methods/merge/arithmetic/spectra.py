"""Singular vectors of the models' changes: for merge methods that treat a weight as a matrix.

All but the last product is computed in double precision, whatever the dtype of computation. In float32, TSV-M of two
random matrices of 512 by 512 was 3e-5 of the largest value away from the exact result, and ``ckpt verify`` allows 1e-5
between processors. With numpy's LAPACK, float32 is not faster. BLAS has one thread, since its sums depend on their
number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ....errors import PlanError
from ....tensors.ops.regions import Array
from ...lora.decomposition import alone
from .._slices import Merging, Slice, Tensors
from ..linear import combination

__all__ = [
    "Changes",
    "Components",
    "components",
    "count_above",
    "counted",
    "factorised",
    "gram",
    "held_with",
    "is_matrix",
    "joined",
    "left_vectors",
    "mean_of_changes",
    "product",
]

_SAFE = {4: 1e-10, 8: 1e-8}
"""{bytes of the dtype of computation: least ratio of the smallest to the largest squared singular value}.

Singular values and vectors are computed from a Gram matrix only if the squared values have this ratio or a larger one.
Its rounding error of 1e-16 of the largest square is 1e-6 of the smallest square for float32, 1e-8 for float64, or less.
The Gram matrix makes this up to four times faster: LAPACK factorises a symmetric matrix of the size of the shorter
side.
"""

_ROUNDED = 1e-13
"""By rounding, an eigenvalue that should be 0 may be as large as this share of the largest eigenvalue."""

_NOTHING = {4: 1e-6, 8: 1e-12}
"""{bytes of the dtype of computation: share of the largest singular value up to which other singular values are zero}.

The singular vectors of such values are only rounding errors: of models with the same weights, or of a change of low
rank.
"""


def is_matrix(shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
    """Return whether a tensor is merged as a matrix.

    This is true if it has two dimensions and at least one value, and if the parameter ``matrices`` is not off.
    """
    return len(shape) == 2 and 0 not in shape and bool(parameters.get("matrices", True))


def mean_of_changes(tensors: Tensors, factor: float) -> Merging:
    """Return a function that merges: the base plus ``factor`` times the mean of the models' differences to it."""
    return combination([factor / tensors.count] * tensors.count)


@dataclass(frozen=True)
class Components:
    """Singular vectors and values, in any order: ``left`` (rows, n), ``values`` (n,) and ``right`` (n, columns)."""

    left: Array
    values: Array
    right: Array


@dataclass(frozen=True)
class Changes:
    """The models' differences to the base, each a matrix; ``xp`` is numpy or torch.

    All are divided by ``scale``, a power of two, so that squares neither overflow nor vanish. Singular values up to
    ``nothing`` times the largest count as zero. Squares of singular values are exact enough above ``safe`` times the
    largest square.
    """

    at: Slice
    scale: float
    nothing: float
    safe: float = _SAFE[8]

    @property
    def xp(self) -> ModuleType:
        """The array library: numpy, or torch on a device."""
        return self.at.xp

    def __len__(self) -> int:
        return len(self.at.models)

    def __getitem__(self, model: int) -> Array:
        """Return the difference of one model to the base, in double precision, divided by ``scale``.

        The array is computed anew at each call, so that only one difference is in memory.
        """
        wide: Array = self.xp.asarray(self.at.delta(model), dtype=self.xp.float64)
        wide /= self.scale  # in the memory of the new array: float64 changes are new arrays, too
        return wide

    def total(self) -> Array:
        """Return the sum of the models' differences to the base, in double precision, divided by ``scale``."""
        total = self[0]
        for model in range(1, len(self)):
            total += self[model]
        return total


def factorised(tensors: Tensors, factor: float, merge: Callable[[Changes], Array]) -> Array:
    """Return the base plus ``factor`` times the result of ``merge``, which gets the models' changes as whole matrices.

    Raises PlanError if a change has values that are not finite, or if LAPACK does not converge.
    """
    at = tensors.whole()
    itemsize = _itemsize(at.models[0])
    changes = Changes(at, _scale(at), _NOTHING[itemsize], _SAFE[itemsize])
    try:
        with alone():
            made = merge(changes)
    except at.xp.linalg.LinAlgError as error:
        raise PlanError(f"the singular values of the changes could not be computed: {error}.", hint=_INSTEAD) from error
    made *= factor * changes.scale
    made += at.base
    result: Array = at.xp.asarray(made, dtype=at.models[0].dtype)
    return result


_INSTEAD = "Merge this tensor as a vector, without singular values: --param 'matrices:KEY=false'."


def _scale(at: Slice) -> float:
    """Return a power of two near the largest magnitude of all changes; raises PlanError if one is not finite."""
    largest = 0.0
    for model in range(len(at.models)):
        delta = at.delta(model)
        if not bool(at.xp.all(at.xp.isfinite(delta))):
            raise PlanError(
                f"the change of model {model + 1} has NaN or infinite values, so it has no singular values.",
                hint=_INSTEAD,
            )
        largest = max(largest, float(at.xp.max(at.xp.abs(delta))))
    return math.ldexp(1.0, min(math.frexp(largest)[1], 1023))


def _itemsize(array: Array) -> int:
    return int(array.dtype.itemsize)


def components(changes: Changes, matrix: Array, rank: int, *, least: float = 0.0) -> Components:
    """Return at most ``rank`` components of a matrix, with the largest nonzero singular values.

    Singular values up to ``least`` count as zero, too: if ``matrix`` is a residual, they may be rounding errors.
    """
    xp, small = changes.xp, min(matrix.shape)
    if _is_promising(changes, rank, matrix.shape):
        tall = matrix.shape[0] > matrix.shape[1]
        squares, vectors = xp.linalg.eigh(gram(matrix, tall=tall))
        number = counted(changes, squares[small - rank :].tolist(), least)
        if number is not None:
            squares, vectors = squares[small - number :], vectors[:, small - number :]
            values = xp.sqrt(squares)
            if tall:
                return Components(matrix @ (vectors / values), values, vectors.T)
            return Components(vectors, values, (vectors / values).T @ matrix)
    left, values, right = xp.linalg.svd(matrix, full_matrices=False)
    above = count_above(values[:rank], changes.nothing, least)
    return Components(left[:, :above], values[:above], right[:above])


def _is_promising(changes: Changes, rank: int, shape: tuple[int, ...]) -> bool:
    """Return whether the Gram matrix of a matrix of this shape is probably exact enough for ``rank`` singular values.

    In double precision, the smallest singular value of a nearly square matrix is often too small for this.
    """
    return changes.safe < _SAFE[8] or 2 * rank <= min(shape) or 2 * min(shape) <= max(shape)


def counted(changes: Changes, squares: Sequence[float], least: float = 0.0) -> int | None:
    """Return the number of singular values of a matrix that do not count as zero, computed from a Gram matrix.

    ``squares`` are their squares, ascending: the eigenvalues of the Gram matrix. Values up to ``least`` count as
    zero, too. Returns None if rounding may have changed the squares too much.
    """
    largest = squares[-1] if squares else 0.0
    zero = max(changes.nothing**2 * largest, least**2)
    above = [one for one in squares if one > zero]
    if (above and above[0] <= changes.safe * largest) or (len(above) < len(squares) and zero <= _ROUNDED * largest):
        return None
    return len(above)


def left_vectors(changes: Changes) -> Array:
    """Return the left singular vectors, with nonzero singular values, of all changes side by side, as columns."""
    xp = changes.xp
    first = changes[0]
    products = first @ first.T
    for model in range(1, len(changes)):
        change = changes[model]
        products += change @ change.T
    squares, vectors = xp.linalg.eigh(products)
    number = counted(changes, squares.tolist())
    if number is not None:
        found: Array = vectors[:, len(squares) - number :]
        return found
    every = xp.concatenate([changes[model] for model in range(len(changes))], axis=1)
    left, values, _ = xp.linalg.svd(every, full_matrices=False)
    rest: Array = left[:, : count_above(values, changes.nothing)]
    return rest


def count_above(values: Array, share: float, least: float = 0.0) -> int:
    """Return the number of descending values that are above ``share`` of the first one, and above ``least``."""
    return sum(one > max(share * float(values[0]), least) for one in values.tolist()) if len(values) else 0


def gram(matrix: Array, *, tall: bool) -> Array:
    """Return the inner products of all pairs of columns of a matrix if it is ``tall``, else of all pairs of rows."""
    products: Array = matrix.T @ matrix if tall else matrix @ matrix.T
    return products


def product(changes: Changes, left: Array, right: Array) -> Array:
    """Return the product of two matrices in the dtype of computation: the last product need not be more exact.

    BLAS multiplies float32 in half the time of float64. Vectors of unit length and their multiples do not overflow.
    """
    dtype = changes.at.models[0].dtype
    made = changes.xp.asarray(left, dtype=dtype) @ changes.xp.asarray(right, dtype=dtype)
    wide: Array = changes.xp.asarray(made, dtype=changes.xp.float64)
    return wide


def joined(xp: ModuleType, several: Sequence[Components]) -> Components:
    """Return the components of several matrices in one object, one matrix after the other."""
    return Components(
        xp.concatenate([one.left for one in several], axis=1),
        xp.concatenate([one.values for one in several]),
        xp.concatenate([one.right for one in several]),
    )


def held_with(
    doubles: Callable[[int, int, int], int],
    shape: tuple[int, ...],
    inputs: int,
    itemsize: int,
    parameters: Mapping[str, Any],
) -> int:
    """Return the bytes of memory for factorising a tensor of this shape: ``held`` of a merge method (see ``Held``).

    ``doubles(rows, columns, inputs)`` returns how many numbers in double precision the method has in memory for a
    matrix of this shape, in addition to the inputs, one change, and what LAPACK needs for its decomposition.
    """
    if not is_matrix(shape, parameters):
        return 0
    rows, columns = shape
    elements, short = rows * columns, min(shape)
    decomposing = 2 * elements + 2 * short * (rows + columns) + 5 * short**2
    return (inputs + 1) * itemsize * elements + 8 * (decomposing + doubles(rows, columns, inputs))
