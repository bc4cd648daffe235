"""FlexiViT's pseudo-inverse resize of a patch embedding, along one of its two axes.

What a patch gives must stay what it was when the image and the kernel are resized together: with B the resize of a
patch, the new kernel is pinv(B^T) times the old one. B is the product of the resizes of rows and columns, and so is
its pseudo-inverse. Beyer et al., https://arxiv.org/abs/2212.08013, section 3.4, and timm's ``resample_patch_embed``:
https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/patch_embed.py
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from .resample import resampled
from .taps import Taps, dense

__all__ = ["pseudo_inverse", "pseudo_inverse_resize"]

Matrix = list[list[float]]


def pseudo_inverse_resize(have: int, want: int, method: str, *, antialias: bool) -> Taps:
    """Return the taps of a kernel of ``want`` pixels that is made of one of ``have``."""
    if have == want:
        return resampled(have, want, method, antialias=antialias)
    taps = resampled(have, want, method, antialias=antialias)
    resize = [[0.0] * have for _ in range(want)]
    for row, indices, weights in zip(resize, taps.indices.tolist(), taps.weights.tolist(), strict=True):
        for index, weight in zip(indices, weights, strict=True):
            row[index] += weight
    return dense(pseudo_inverse(_transposed(resize)))


def pseudo_inverse(matrix: Sequence[Sequence[float]]) -> Matrix:
    """Return the pseudo-inverse of a matrix of full rank, in Python's floats, which are the same everywhere.

    ``sum`` is not: from 3.12 on it keeps what it rounds off.
    """
    rows = [list(row) for row in matrix]
    columns = _transposed(rows)
    if len(rows) <= len(columns):
        return _transposed(_solved(_product(rows, columns), rows))
    return _solved(_product(columns, rows), columns)


def _transposed(matrix: Sequence[Sequence[float]]) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def _product(first: Matrix, second: Matrix) -> Matrix:
    columns = _transposed(second)
    return [[fsum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in first]


def _solved(square: Matrix, right: Matrix) -> Matrix:
    """Return X with ``square`` X = ``right``, by elimination; the matrix is a Gram matrix, so it needs no pivots."""
    left, made = [row[:] for row in square], [row[:] for row in right]
    for pivot, row in enumerate(left):
        for other in range(pivot + 1, len(left)):
            factor = left[other][pivot] / row[pivot]
            if factor:
                left[other] = [a - factor * b for a, b in zip(left[other], row, strict=True)]
                made[other] = [a - factor * b for a, b in zip(made[other], made[pivot], strict=True)]
    for pivot in reversed(range(len(left))):
        for other in range(pivot + 1, len(left)):
            factor = left[pivot][other]
            made[pivot] = [a - factor * b for a, b in zip(made[pivot], made[other], strict=True)]
        made[pivot] = [a / left[pivot][pivot] for a in made[pivot]]
    return made
