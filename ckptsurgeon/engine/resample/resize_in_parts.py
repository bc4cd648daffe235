"""Resizes tensors part by part: computes a part of the output from the part of the source that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import fsum
from types import MappingProxyType

import numpy as np

from ...planning.mismatch.policy_text import Policy, parse_policy
from ...planning.mismatch.positions import positions_of
from ...tensors.ops.regions import Array, Box, box_shape
from .resample import InterpolationWeights, apply_taps, crossed, dense, from_rows, kept_before, reach_of, resampled

__all__ = ["ADAPTERS", "adaptation_box", "adapted", "centred", "pseudo_inverse", "pseudo_inverse_resize"]

# A kernel in the middle of a larger kernel, with zeros around it: the result of the convolution is the same.
#
# RepVGG makes a 3x3 kernel from a 1x1 kernel in this way (https://arxiv.org/abs/2101.03697), and RepLKNet a large
# kernel from a small one (https://arxiv.org/abs/2203.06717). The padding of the convolution must grow with the kernel.

Shape = Sequence[int]


def centred(
    read: Callable[[Box], Array], dtype: np.dtype[np.generic], box: Box, *, source: Shape, destination: Shape
) -> Array:
    """Return the part ``box`` of a convolution kernel that has the source kernel in its centre, and zeros around it.

    ``read`` returns a part of the source kernel. ``source`` and ``destination`` are the shapes of the two kernels.
    """
    out = np.zeros(box_shape(box), dtype)
    part, place = [], []
    for (begin, end), have, want in zip(box, source, destination, strict=True):
        before = (want - have) // 2
        first, last = max(begin - before, 0), min(end - before, have)
        if first >= last:
            return out
        part.append((first, last))
        place.append(slice(first + before - begin, last + before - begin))
    out[tuple(place)] = read(tuple(part))
    return out


# FlexiViT's pseudo-inverse resize of a patch embedding, along one of its two axes.
#
# The embedding of a patch must not change if the patch and the kernel are resized together. If B is the matrix that
# resizes a patch, the new kernel is pinv(B^T) times the old kernel. B is the (Kronecker) product of the resizes of rows
# and columns, and so is its pseudo-inverse: the two axes can be resized one after the other.
# Beyer et al., https://arxiv.org/abs/2212.08013, section 3.4, and timm's ``resample_patch_embed``:
# https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/patch_embed.py

Matrix = list[list[float]]


def pseudo_inverse_resize(have: int, want: int, method: str, *, antialias: bool) -> InterpolationWeights:
    """Return the weights that resize a patch embedding's axis from ``have`` to ``want`` pixels, as FlexiViT does."""
    if have == want:
        return resampled(have, want, method, antialias=antialias)
    taps = resampled(have, want, method, antialias=antialias)
    resize = [[0.0] * have for _ in range(want)]
    for row, indices, weights in zip(resize, taps.indices.tolist(), taps.weights.tolist(), strict=True):
        for index, weight in zip(indices, weights, strict=True):
            row[index] += weight
    return dense(pseudo_inverse(_transposed(resize)))


def pseudo_inverse(matrix: Sequence[Sequence[float]]) -> Matrix:
    """Return the pseudo-inverse of a matrix of full rank, computed with Python floats: it is the same on every machine.

    ``sum`` is not used: since Python 3.12 it compensates rounding errors, so that its results depend on the version.
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
    """Return the matrix X with ``square`` X = ``right``; ``square`` must be a Gram matrix of full rank.

    For such a matrix, Gaussian elimination needs no pivoting.
    """
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


ADAPTERS = ("positions-1d", "positions-2d", "patch", "channels")
"""The operations of steps that this module computes."""

Maps = Mapping[int, InterpolationWeights]


def adaptation_box(policy: str, box: Box, source: Shape, destination: Shape) -> Box:
    """Return the part of the source from which the part ``box`` of the resized tensor is computed.

    ``policy`` says how the tensor is resized; ``source`` and ``destination`` are its shapes before and after.
    """
    maps = _maps(policy, tuple(source), tuple(destination))
    return tuple(reach_of(maps[axis], *ends) if axis in maps else ends for axis, ends in enumerate(box))


def adapted(policy: str, values: Array, part: Box, box: Box, *, source: Shape, destination: Shape) -> Array:
    """Return the part ``box`` of a resized tensor; ``values`` is the part ``part`` of the source tensor, as float64.

    ``adaptation_box`` returns ``part``. ``source`` and ``destination`` are the shapes before and after.
    """
    for axis, taps in _maps(policy, tuple(source), tuple(destination)).items():
        values = apply_taps(values, axis, taps, rows=box[axis], first=part[axis][0])
    return values


@lru_cache(maxsize=8)
def _maps(policy: str, have: tuple[int, ...], want: tuple[int, ...]) -> Maps:
    """Return {axis: interpolation weights} for the axes that a policy resizes, from the shape ``have`` to ``want``.

    The shapes must fit the policy.
    """
    asked = parse_policy(policy)
    makers = {"patch": _patch, "channels": _channels}
    return MappingProxyType(makers.get(asked.name, _positions)(asked, have, want))


def _positions(policy: Policy, have: Shape, want: Shape) -> dict[int, InterpolationWeights]:
    """Return {axis: interpolation weights} for resampling position embeddings.

    The weights are the same as in timm's ``resample_abs_pos_embed`` and DeiT's ``main.py``. The embeddings of prefix
    tokens (such as the class token) are not changed.

    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/pos_embed.py and
    https://github.com/facebookresearch/deit/blob/main/main.py (bicubic, without antialiasing).
    """
    found = positions_of(policy, have, want)
    assert not isinstance(found, str)  # ensured by fit
    if len(found.old) == 1:
        along = resampled(found.old[0], found.new[0], "bilinear", antialias=False)
        return {found.axis: kept_before(along, found.prefix)}
    method, antialias = found.policy.get("method"), found.policy.get("antialias") == "yes"
    rows, columns = (
        resampled(old, new, method, antialias=antialias) for old, new in zip(found.old, found.new, strict=True)
    )
    return {found.axis: kept_before(crossed(rows, columns, found.old[1]), found.prefix)}


def _patch(policy: Policy, have: Shape, want: Shape) -> dict[int, InterpolationWeights]:
    """Return {axis: interpolation weights} for resizing a patch embedding, by ``pseudo_inverse_resize``."""
    antialias = (policy.get("antialias") or "yes") == "yes"
    method = policy.get("method") or "bicubic"
    return {
        axis: pseudo_inverse_resize(have[axis], want[axis], method, antialias=antialias)
        for axis in (2, 3)
        if have[axis] != want[axis]
    }


def _channels(policy: Policy, have: Shape, want: Shape) -> dict[int, InterpolationWeights]:
    """Return {1: weights} for changing the number of input channels (axis 1), as in timm's ``adapt_input_conv``.

    If the output has one channel, it is the sum of all input channels. If it has several, the input channels are
    repeated in order, and scaled so that the sum over all channels stays about the same.

    https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_manipulate.py
    """
    inputs, wanted = have[1], want[1]
    if wanted == 1:
        return {1: from_rows([(range(inputs), [1.0] * inputs)])}
    return {1: from_rows([((channel % inputs,), (inputs / wanted,)) for channel in range(wanted)])}
