"""The kinds of changes other than one product of two factors: LoHa, LoKr, Tucker, OFT, stacked experts; no values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .composed import COMPOSED, SIDES, composed_shape
from .expert_stack import fits_stack, is_stack
from .rotated import ROTATED, fits_rotation, neumann_terms
from .tucker import TUCKER, plain_kind, plain_shapes

__all__ = ["MERGED", "factors_of", "fits_kind"]

MERGED = (*COMPOSED, ROTATED)
"""The roles of tensors begin with one of these in all adapters that ``lora merge`` accepts besides LoRA."""


def factors_of(kind: str) -> int | None:
    """Return the number of tensors of a change of one of the kinds in this module; None for any other kind."""
    if is_stack(kind):
        return 2
    if kind in SIDES or kind in TUCKER:
        return sum(SIDES[kind] if kind in SIDES else TUCKER[kind][1])
    return 1 if neumann_terms(kind) is not None else None


def fits_kind(kind: str, shape: Sequence[int], inputs: Sequence[Sequence[int]]) -> bool:
    """Return whether a change made from tensors of shapes ``inputs`` fits a weight of ``shape``.

    ``kind`` is a kind of this module. The kernel dimensions of a convolution count as columns, in the weight and in the
    tensors.
    """
    if is_stack(kind):
        return fits_stack(kind, shape, inputs)
    if len(shape) < 2:
        return False
    rows, columns = shape[0], prod(shape[1:])
    if neumann_terms(kind) is None:
        found = composed_shape(plain_kind(kind), plain_shapes(kind, inputs))
        return found is not None and (found.rows, found.columns) == (rows, columns)
    return len(inputs) == 1 and fits_rotation(columns, inputs[0])
