"""Tucker decompositions of the changes of convolutions, in LoCon, LoHa and LoKr.

A Tucker decomposition has a core T (i, j, *kernel) and two matrices: A (i, out), which is (out, i) in a LoCon, and B
(j, in). T is multiplied by B; with its kernel dimensions as columns, the result is a matrix (i, in * kernel). The
product of A, as (out, i), and this matrix is the change of a LoCon, or W1 or W2 of a LoHa or LoKr. So two matrices give
the same result as the three tensors, and each kind with a Tucker decomposition has an equal kind without it.

https://github.com/KohakuBlueleaf/LyCORIS (``rebuild_tucker``); peft 0.21 computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TypeVar

__all__ = ["LOCON", "PRODUCT", "TUCKER", "plain_kind", "plain_shapes", "tucker_sides"]

PRODUCT = "product"
"""The kind of a change that is the product of two matrices, as in a LoRA."""

LOCON = "product tucker"

TUCKER: Mapping[str, tuple[str, tuple[int, ...]]] = {
    LOCON: (PRODUCT, (3,)),
    "hadamard tucker": ("hadamard", (3, 3)),
    "kronecker 1 tucker": ("kronecker 1 2", (1, 3)),
    "kronecker 2 tucker": ("kronecker 2 2", (2, 3)),
}
"""{kind with a Tucker decomposition: the same kind without, and the numbers of tensors of the matrices W1 and W2}

The tensors of a Tucker decomposition are the core, A and B, in this order."""

Item = TypeVar("Item")


def plain_kind(kind: str) -> str:
    """Return the kind without a Tucker decomposition that makes the same change; ``kind`` itself if it has none."""
    return TUCKER[kind][0] if kind in TUCKER else kind


def tucker_sides(kind: str, items: Sequence[Item]) -> Iterator[tuple[bool, Sequence[Item]]]:
    """Yield (whether it is a Tucker decomposition, its tensors in ``items``) for each matrix of a change.

    ``items`` are the tensors of the change, or their keys or shapes, in order. The matrices of a LoHa or LoKr are W1
    and W2; a LoCon has only one.
    """
    at = 0
    for number in TUCKER[kind][1]:
        yield number == 3, items[at : at + number]
        at += number


def plain_shapes(kind: str, shapes: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the shapes of the matrices that make the same change without a Tucker decomposition.

    ``shapes`` are the shapes of the stored tensors. Kernel dimensions are counted as columns. Returns [] if the tensors
    of a Tucker decomposition do not fit each other.
    """
    if kind not in TUCKER:
        return [_flat(shape) for shape in shapes]
    made: list[Sequence[int]] = []
    for is_tucker, side in tucker_sides(kind, shapes):
        if not is_tucker:
            made += map(_flat, side)
            continue
        core, first, second = side[0], _flat(side[1]), _flat(side[2])
        first = first[::-1] if kind == LOCON else first
        if len(core) < 2 or len(first) != 2 or len(second) != 2 or core[:2] != (first[0], second[0]):
            return []
        made += [(first[1], first[0]), (core[0], second[1] * prod(core[2:]))]
    return made


def _flat(shape: Sequence[int]) -> Sequence[int]:
    """Return a shape in which all dimensions after the first are joined to one: (8, 4, 3, 3) becomes (8, 36)."""
    return (shape[0], prod(shape[1:])) if len(shape) > 2 else shape
