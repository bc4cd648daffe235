"""Fingerprints of float16 and bfloat16 tensors that depend neither on the order of elements nor on their rounding.

The elements of a tensor, or of a slice, are divided by their root mean square. The sums of their sines and cosines at
a few frequencies are nearly the same after rounding, and the same in each order; they differ for other elements, as
the values of an empirical characteristic function (Feuerverger and Mureika, 1977).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ....checkpoint.checkpoint import Checkpoint
from ....engine.compute.column_bands import banded
from ....engine.compute.reading import read_part
from ....tensors.info import TensorInfo
from ....tensors.ops.casts import cast
from ....tensors.ops.regions import Array, Box, blocks
from .line_fingerprints import ELEMENTS
from .rounded import Numbers, Projections, numbered

__all__ = ["Groups", "rounded_groups", "rounded_order"]

FREQUENCIES = (0.5, 0.9, 1.3, 1.8)
"""Rounding to bfloat16 changes a sum by about 0.001 at these frequencies."""
Sided = tuple[Checkpoint, TensorInfo]
Groups = dict[tuple[int, int], list[str]]


def rounded_groups(
    here: Checkpoint, tensors: Mapping[str, TensorInfo], there: Checkpoint, others: Mapping[str, TensorInfo]
) -> tuple[Groups, Groups]:
    """Return, for each of two models, {(number of elements, id): keys}; tensors with the same elements have one id."""
    found: tuple[Groups, Groups] = defaultdict(list), defaultdict(list)
    sizes = {info.numel for info in tensors.values()} & {info.numel for info in others.values()}
    for size in sorted(sizes):
        keys = [[key for key, info in side.items() if info.numel == size] for side in (tensors, others)]
        sums = [
            np.vstack([_sums(source, side[key], ())[0] for key in some])
            for source, side, some in zip((here, there), (tensors, others), keys, strict=True)
        ]
        for groups, some, ids in zip(found, keys, numbered(sums[0], sums[1]), strict=True):
            for key, one in zip(some, ids.tolist(), strict=True):
                groups[size, one].append(key)
    return found


def rounded_order(one: Sided, other: Sided) -> list[tuple[Array, Array]]:
    """Return, for each of the first two dimensions, an id for each slice of ``one`` and for each slice of ``other``.

    Slices with the same elements, apart from rounding, have the same id.
    """
    both = [_sums(*side, (0, 1)) for side in (one, other)]
    return [numbered(first, second) for first, second in zip(*both, strict=True)]


def _sums(source: Checkpoint, info: TensorInfo, dims: tuple[int, ...]) -> list[Projections]:
    """Return, for each of ``dims``, the sums of sines and cosines of each slice along it; the tensor is read twice.

    Without ``dims``, the whole tensor is the only slice.
    """
    sizes = [info.shape[dim] for dim in dims] or [1]
    squares = [np.zeros(size) for size in sizes]
    for box, values in _read(source, info):
        for total, (place, axes) in zip(squares, _places(box, dims), strict=True):
            total[place] += (values * values).sum(axis=axes)
    roots = [np.sqrt(total * size / info.numel) for total, size in zip(squares, sizes, strict=True)]
    found = [np.zeros((size, 2 * len(FREQUENCIES) + 1)) for size in sizes]
    for box, values in _read(source, info):
        for sums, root, (place, axes) in zip(found, roots, _places(box, dims), strict=True):
            _add(sums[place], values, root[place], axes)
    return [_normed(sums, total, info.numel // size) for sums, total, size in zip(found, squares, sizes, strict=True)]


def _read(source: Checkpoint, info: TensorInfo) -> Iterator[tuple[Box, Numbers]]:
    files = banded(info, source)
    for box in blocks(info.shape, ELEMENTS):
        values = cast(read_part(files, info, box), info.dtype, "float64")[0]
        values = values.reshape([end - begin for begin, end in box])
        yield box, np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _places(box: Box, dims: Sequence[int]) -> list[tuple[slice, tuple[int, ...]]]:
    """Return, for each of ``dims``: (indices of the slices along it that are in ``box``, all other dimensions).

    Without ``dims``, the whole tensor is the only slice.
    """
    every = range(len(box))
    if not dims:
        return [(slice(0, 1), tuple(every))]
    return [(slice(*box[dim]), tuple(other for other in every if other != dim)) for dim in dims]


def _add(sums: Numbers, values: Numbers, root: Numbers, axes: tuple[int, ...]) -> None:
    """Add the sines and cosines of a part of the tensor to ``sums``; ``root`` has a root mean square for each slice."""
    shape = [1 if dim in axes else size for dim, size in enumerate(values.shape)]
    relative = values / np.where(root > 0, root, 1.0).reshape(shape)
    for place, frequency in enumerate(FREQUENCIES):
        sums[:, 2 * place] += np.sin(frequency * relative).sum(axis=axes)
        sums[:, 2 * place + 1] += np.cos(frequency * relative).sum(axis=axes)


def _normed(sums: Numbers, squares: Numbers, size: int) -> Projections:
    """Return the sums of sines and cosines divided by the root of ``size``, and the logarithm of each slice's norm.

    Sums that are scaled in this way differ by about 1 between slices with different elements. ``squares`` has the sum
    of the squares of each slice's elements, and ``size`` is the number of these elements.
    """
    sums[:, :-1] /= np.sqrt(size)
    sums[:, -1] = np.log(np.maximum(np.sqrt(squares / 3), 2.0**-149))
    return sums
