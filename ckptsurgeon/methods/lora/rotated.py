"""OFT: adapters that rotate the inputs of a layer, so that its weight W becomes W R' (arXiv 2306.07280).

R has square blocks on its diagonal. Each is the rotation (I + Q)^-1 (I - Q) of a skew-symmetric matrix Q (Cayley), or
the first terms of the series I + 2 Q + 2 Q^2 + ..., which is the rotation for -Q. The adapter stores the elements of
each Q above its diagonal. This module handles only names and shapes. It knows PEFT's names
(``peft/tuners/oft/layer.py``, 0.21).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

__all__ = ["MOST_TERMS", "ROTATED", "ROTATION", "block_size", "fits_rotation", "neumann_terms", "rotation_kind"]

ROTATED = "oft_R"
"""The role of the tensor of an OFT."""

ROTATION = "rotation"
"""The kind of an OFT; if the rotation is a truncated series, the number of its terms follows ("rotation 5")."""

MOST_TERMS = 64
"""The largest number of terms of a rotation's series; PEFT's default is 5."""


def rotation_kind(terms: int) -> str:
    """Return the kind of an OFT whose rotation is a series with ``terms`` terms, or exact if ``terms`` is 0."""
    return f"{ROTATION} {terms}" if terms else ROTATION


_TERMS = {ROTATION: 0} | {f"{ROTATION} {terms}": terms for terms in range(1, MOST_TERMS + 1)}


def neumann_terms(kind: str) -> int | None:
    """Return the number of terms of the series of an OFT's rotation, 0 if it is exact; None for any other kind."""
    return _TERMS.get(kind)


def block_size(elements: int) -> int:
    """Return the n for which an n by n matrix has ``elements`` = n (n - 1) / 2 elements above its diagonal; 0 if none.

    A matrix with n = 1 has no elements above its diagonal, and rotates nothing.
    """
    if elements < 1:
        return 0
    side = (1 + isqrt(1 + 8 * elements)) // 2
    return side if side * (side - 1) // 2 == elements else 0


def fits_rotation(columns: int, shape: Sequence[int]) -> bool:
    """Return whether the tensor of an OFT with this shape, (blocks, elements), rotates ``columns`` inputs.

    A single block may be used for all inputs.
    """
    if len(shape) != 2:
        return False
    blocks, side = shape[0], block_size(shape[1])
    return side > 0 and columns % side == 0 and blocks in (1, columns // side) and columns > 0
