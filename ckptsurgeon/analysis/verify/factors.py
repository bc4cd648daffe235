"""Holds extracted factors against those that are extracted again: by their product, which is all that counts of them.

Factors are the same but for a turn of their common side, and singular vectors have no sign: LAPACK and BLAS of another
machine round otherwise, and give others whose product is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.reading import read_part
from ...engine.run.context import MergeContext
from ...planning.plan.lora import Factor
from ...planning.plan.step import Step
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import Array
from ...tensors.ops.casts import cast
from .differences import Origins

__all__ = ["product_fault"]

UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half the last place of a dtype, relative to a value."""

SMALLEST = {"float16": 2.0**-25}
"""Half the smallest value above zero: what rounding changes of values that are smaller still."""


@dataclass(frozen=True)
class _Product:
    """Left (rows, rank) times right (rank, columns), in double precision."""

    left: Array
    right: Array

    def rounding(self, dtype: str) -> float:
        """Return twice what rounding one factor can change of the product, so that the second order is within it."""
        left, right = float(np.linalg.norm(self.left)), float(np.linalg.norm(self.right))
        least = SMALLEST.get(dtype, 0.0) * max(sqrt(self.left.size) * right, sqrt(self.right.size) * left)
        return 2 * (UNITS[dtype] * left * right + least)

    def apart(self, other: _Product) -> float:
        """Return the norm of the difference of two products, which are never multiplied out: that could be gigabytes.

        Of [L1, -L2] [R1; R2] both sides are made triangular; that changes no norm, and cancels nothing.
        """
        left = np.linalg.qr(np.hstack([self.left, -other.left]))[1]
        right = np.linalg.qr(np.vstack([self.right, other.right]).T)[1]
        return float(np.linalg.norm(left @ right.T))


def product_fault(step: Step, pair: Origins, origins: Origins, context: MergeContext) -> str:
    """Return what is wrong with the product of A and B, '' for nothing; ``pair`` is as they are in the output.

    What is allowed is what rounding explains: each element of a factor was rounded to its dtype, and decompositions
    differ as ``Decomposition`` says.
    """
    assert step.factor is not None  # by check_step
    found, again = _product(step.factor, *pair), context.factors.of(step, origins)
    root = sqrt(step.factor.scale)
    wanted = _Product(again.left / root, again.right / root)
    allowed = again.unsure / step.factor.scale + sum(wanted.rounding(info.dtype) for info, _ in pair)
    apart = found.apart(wanted)
    if apart <= allowed:
        return ""
    return f"times its other factor is {apart:.2g} (norm) off what is extracted again; rounding explains {allowed:.2g}"


def _product(factor: Factor, a: tuple[TensorInfo, Checkpoint], b: tuple[TensorInfo, Checkpoint]) -> _Product:
    first, second = (_matrix(*one) for one in (a, b))
    return _Product(first.T, second.T) if factor.transposed else _Product(second, first)


def _matrix(info: TensorInfo, source: Checkpoint) -> Array:
    """Return a factor as a matrix: what a convolution has beyond rows and columns lies along the columns."""
    values = read_part(source, info, tuple((0, size) for size in info.shape))
    return cast(values, info.dtype, "float64")[0].reshape(len(values), -1)
