"""Computes rows of the change of a LoHa, LoKr, Tucker decomposition or stacked experts, and rotates rows like an OFT.

All values are in double precision. With ``in_order``, every sum is computed in order, so that the result is the same on
every machine. Otherwise BLAS and LAPACK compute the sums, which is faster; the last bits of doubles then depend on the
processor. Only the products of a core and a matrix are always computed in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from ...tensors.ops.regions import Array
from .composed import HADAMARD, SIDES
from .decomposition import multiplied
from .expert_stack import is_stack, is_turned
from .rotated import block_size, neumann_terms
from .tucker import LOCON, PRODUCT, TUCKER, plain_kind, plain_shapes, tucker_sides

__all__ = ["composed_rows", "elements_of_kind", "rotation", "stack_rows"]


def elements_of_kind(kind: str, shapes: Sequence[Sequence[int]], columns: int) -> int:
    """Return the largest number of float64 values that a change of this kind keeps in memory besides its tensors.

    ``shapes`` are the shapes of the tensors, ``columns`` is the number of columns of the weight.
    """
    if is_stack(kind):
        return 0
    if neumann_terms(kind) is not None:
        return 8 * columns * block_size(shapes[0][1])  # seven more arrays of this size for a moment
    plain = plain_shapes(kind, shapes)
    held = 2 * sum(map(prod, plain)) if kind in TUCKER else 0
    if plain_kind(kind) in (HADAMARD, PRODUCT):
        return held
    at = SIDES[plain_kind(kind)][0]
    return held + sum(2 * side[0][0] * side[-1][1] for side in (plain[:at], plain[at:]))


def composed_rows(kind: str, tensors: Sequence[Array], scale: float, *, in_order: bool) -> Callable[[int, int], Array]:
    """Return a function that computes rows of a change, times ``scale``, from its tensors.

    The arguments of this function are the first row, and the row after the last. ``kind`` is one of ``SIDES`` or
    ``TUCKER``.
    """
    matrices = _matrices(kind, tensors)
    kind, times = plain_kind(kind), _in_order if in_order else multiplied
    if kind == PRODUCT:
        left, right = matrices
        return lambda begin, end: scale * times(left[begin:end], right)
    if kind == HADAMARD:
        a, b, c, d = matrices
        return lambda begin, end: scale * times(a[begin:end], b) * times(c[begin:end], d)
    at = SIDES[kind][0]
    first, second = (side[0] if len(side) == 1 else times(*side) for side in (matrices[:at], matrices[at:]))

    def rows(begin: int, end: int) -> Array:
        outer, inner = np.divmod(np.arange(begin, end), len(second))
        made: Array = scale * first[outer, :, None] * second[inner, None, :]
        return made.reshape(end - begin, -1)

    return rows


def stack_rows(
    kind: str, tensors: Sequence[Array], experts: int, scale: float, *, in_order: bool
) -> Callable[[int, int], Array]:
    """Return a function that computes rows of the changes of all experts, times ``scale``.

    ``kind`` is a kind of stacked experts. The arguments of the function are the first row, and the row after the last;
    the matrices of all experts are one below the other. ``tensors`` are A, (experts * rank, in), and B, (out, rank *
    experts).
    """
    a, b = tensors
    times = _in_order if in_order else multiplied
    lefts = b.reshape(len(b), -1, experts).transpose(2, 0, 1)  # (experts, out, rank)
    rights = a.reshape(experts, -1, a.shape[1])  # (experts, rank, in)
    if is_turned(kind):
        lefts, rights = rights.transpose(0, 2, 1), lefts.transpose(0, 2, 1)
    size = lefts.shape[1]

    def rows(begin: int, end: int) -> Array:
        parts = []
        for expert in range(begin // size, -(-end // size)):
            own = slice(max(begin - expert * size, 0), min(end - expert * size, size))
            parts.append(times(np.ascontiguousarray(lefts[expert, own]), np.ascontiguousarray(rights[expert])))
        made: Array = scale * (parts[0] if len(parts) == 1 else np.concatenate(parts))
        return made

    return rows


def _matrices(kind: str, tensors: Sequence[Array]) -> list[Array]:
    """Return the matrices whose product is the change; kernel dimensions have become columns."""
    if kind not in TUCKER:
        return list(map(_flat, tensors))
    made: list[Array] = []
    for is_tucker, side in tucker_sides(kind, tensors):
        made += _without_core(*side, turned=kind != LOCON) if is_tucker else map(_flat, side)
    return made


def _without_core(core: Array, first: Array, second: Array, *, turned: bool) -> tuple[Array, Array]:
    """Return two matrices whose product is equal to the product of a core (i, j, *kernel) and two matrices.

    ``first`` is (out, i) or, if ``turned``, (i, out); ``second`` is (j, in).
    """
    by_kernel = core.reshape(*core.shape[:2], -1).transpose(0, 2, 1)
    right = _batch_in_order(by_kernel, _flat(second)[None])  # (i, kernel, in)
    left = _flat(first)
    return np.ascontiguousarray(left.T if turned else left), right.transpose(0, 2, 1).reshape(len(core), -1)


def _flat(tensor: Array) -> Array:
    return tensor.reshape(len(tensor), -1)


def _in_order(left: Array, right: Array) -> Array:
    """Return the product of two matrices, each element summed in order."""
    total = np.zeros((len(left), right.shape[1]))
    part = np.empty_like(total)
    for k in range(len(right)):
        np.multiply(left[:, k : k + 1], right[k], out=part)
        total += part
    return total


def rotation(
    elements: Array, terms: int, columns: int, *, transposed: bool, in_order: bool
) -> Callable[[Array], Array]:
    """Return a function that multiplies rows of ``columns`` values by an OFT's rotation R, or by its transpose.

    ``elements`` (blocks, elements above the diagonal) is the tensor of the OFT; a single block is used for all columns.
    ``terms`` is the number of terms of the series, 0 for the exact rotation.
    """
    blocks = _blocks(_skew(elements), terms, in_order=in_order)
    side = blocks.shape[1]
    blocks = np.ascontiguousarray(np.broadcast_to(blocks, (columns // side, side, side)))
    if transposed:
        blocks = np.ascontiguousarray(blocks.transpose(0, 2, 1))

    def rotated(base: Array) -> Array:
        rows = base.reshape(len(base), -1, side).transpose(1, 0, 2)  # (blocks, rows, side)
        made = _batch_in_order(rows, blocks) if in_order else np.matmul(rows, blocks)
        return made.transpose(1, 0, 2).reshape(base.shape)

    return rotated


def _skew(elements: Array) -> Array:
    """Return the skew-symmetric matrices with these elements above their diagonals, row by row."""
    side = block_size(elements.shape[1])
    rows, columns = np.triu_indices(side, 1)
    made = np.zeros((len(elements), side, side))
    made[:, rows, columns] = elements
    return made - made.transpose(0, 2, 1)


def _blocks(skew: Array, terms: int, *, in_order: bool) -> Array:
    """Return the blocks of a rotation: exact if ``terms`` is 0, else the series as PEFT truncates it.

    PEFT has I for one term and I + 2 Q for two. For more terms it adds 2 Q^2, 2 Q^3 and so on, but the last power
    without the factor 2: four terms are I + 2 Q + 2 Q^2 + Q^3. Three terms give the same sum as four.
    """
    unit = np.broadcast_to(np.eye(skew.shape[1]), skew.shape)
    if not terms:
        return _solved(unit + skew, unit - skew) if in_order else np.linalg.solve(unit + skew, unit - skew)
    times = _batch_in_order if in_order else np.matmul
    total = unit + (2 * skew if terms > 1 else 0)
    if terms > 2:
        power = times(skew, skew)
        total += 2 * power
        for _ in range(3, terms - 1):
            power = times(power, skew)
            total += 2 * power
        total += times(power, skew)
    return total


def _solved(left: Array, right: Array) -> Array:
    """Return X with X ``left`` = ``right``, by elimination without pivoting; ``left`` is I + Q, ``right`` is I - Q.

    (I + Q) and (I - Q) commute, so that X is also the solution of left X = right. The symmetric part of I + Q is I, so
    that no pivot is less than 1, and elimination needs no pivoting.
    """
    left, right = left.copy(), right.copy()
    for k in range(left.shape[1]):
        pivot = left[:, k, k][:, None]
        row, wanted = left[:, k] / pivot, right[:, k] / pivot
        left[:, k], right[:, k] = row, wanted
        factor = left[:, :, k].copy()
        factor[:, k] = 0
        left[:, :, k + 1 :] -= factor[:, :, None] * row[:, None, k + 1 :]  # the columns before are not needed again
        right -= factor[:, :, None] * wanted[:, None, :]
    return right


def _batch_in_order(left: Array, right: Array) -> Array:
    """Return the products of pairs of matrices, each element summed in order."""
    total = np.zeros((len(left), left.shape[1], right.shape[2]))
    part = np.empty_like(total)
    for k in range(right.shape[1]):
        np.multiply(left[:, :, k, None], right[:, k, None, :], out=part)
        total += part
    return total
