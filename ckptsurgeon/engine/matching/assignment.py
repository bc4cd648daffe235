"""Linear assignment by scipy: pairs rows and columns of a square matrix so that the sum of the pairs is the largest.

https://docs.scipy.org/doc/scipy/reference/generated/scipy.optimize.linear_sum_assignment.html
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import ConfigError, PlanError
from ...tensors.ops.regions import Array

__all__ = ["assignment", "solver", "value_of"]


def solver() -> Callable[[Array], tuple[Array, Array]]:
    """Return scipy's ``linear_sum_assignment``; raises ConfigError if scipy cannot be imported."""
    try:
        from scipy.optimize import linear_sum_assignment  # here, because this import takes half a second
    except ImportError as error:
        raise ConfigError(
            f"to align weights, the package scipy is needed, and it cannot be imported: {error}.",
            hint="Run pip install 'ckptsurgeon[align]'.",
        ) from error
    found: Callable[[Array], tuple[Array, Array]] = linear_sum_assignment
    return found


def assignment(values: Array) -> Array:
    """Return, for each row, the column that it is paired with; the pairs have the largest possible sum of ``values``.

    ``values`` is a square matrix in double precision. It is negated for scipy and restored, because scipy copies the
    matrix if it is to find the largest sum. Raises PlanError for values that are not finite.
    """
    if not np.isfinite([values.min(), values.max()]).all():  # both are NaN if one value is; no array of this size
        raise PlanError(
            "inner products of the weights are too large for their number format, so the models cannot be aligned.",
            hint="Find the large values with ckpt check.",
        )
    np.negative(values, out=values)
    try:
        return solver()(values)[1]
    finally:
        np.negative(values, out=values)


def value_of(values: Array, order: Array) -> float:
    """Return the sum of ``values`` over the pairs (row, column) in ``order``, which has a column for each row."""
    return float(values[np.arange(len(values)), order].sum())
