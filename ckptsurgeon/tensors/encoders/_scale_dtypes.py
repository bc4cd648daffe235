"""Rounds scales to the dtype that they are stored in."""

from __future__ import annotations

import numpy as np

from ...errors import PlanError
from ...util.text import escape
from ..info import Encoded
from ..ops.casts import cast, widened
from ..ops.regions import Array

__all__ = ["cast_scale", "power_above", "stored_scale"]

_EPSILONS = {
    "float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float8_e4m3fn": 2.0**-3,
}  # fmt: skip
"""{dtype of scales: scale of a group of zeros}; as in compressed-tensors, it is the machine epsilon of the dtype."""
EXPONENTS = "float8_e8m0fnu"


def stored_scale(made: Encoded, scale: Array) -> Array:
    """Return scales (float32) in their stored dtype; 0 becomes a small number, so that nothing is divided by 0.

    If scales are stored as powers of two, they are rounded up, so that no value is beyond the largest code. Raises
    PlanError if a scale exceeds the range of the stored dtype.
    """
    if made.scale_dtype == EXPONENTS:
        return _exponents(scale).astype("u1")
    stored = cast_scale(made, scale)
    found = np.asarray(widened(stored, made.scale_dtype))
    if (found == 0).any():
        small, _ = cast(np.asarray([_EPSILONS[made.scale_dtype]], "<f4"), "float32", made.scale_dtype)
        stored = np.where(found == 0, small[0], stored).astype(stored.dtype)
    return stored


def power_above(scale: Array) -> Array:
    """Return scales (float32), rounded up to powers of two; 1 for 0."""
    powers: Array = (_exponents(scale) << np.uint32(23)).view("<f4")
    return np.where(scale > 0, powers, np.float32(1))


def _exponents(scale: Array) -> Array:
    """Return the exponents (with the bias of float32) of the smallest powers of two that are not below the scales."""
    bits = np.maximum(scale, np.float32(2.0**-126)).view("<u4")
    found: Array = (bits + np.uint32(0x7F_FFFF)) >> np.uint32(23)
    return found


def cast_scale(made: Encoded, scale: Array, name: str = "scale") -> Array:
    """Return scales (float32) in their stored dtype; raises PlanError if one exceeds the range of this dtype.

    ``name`` is what the message calls a scale: affine encodings store biases, too.
    """
    stored, _ = cast(scale.astype("<f4"), "float32", made.scale_dtype)
    if not np.isfinite(np.asarray(widened(stored, made.scale_dtype))).all():
        raise PlanError(
            f"a {name} of {escape(made.name)} exceeds the range of {made.scale_dtype}, the dtype of its stored scales.",
            hint="Do not quantise this tensor: write it as plain numbers.",
        )
    return stored
