"""Computes by what heads, channels, experts and layers are chosen: by weights, or by statistics of activations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError
from ...planning.resizing.axes import Axis
from ...planning.resizing.select import scores_by_weights
from ...util.text import escape
from .statistics import Statistics

__all__ = ["scores", "scores_by_activations"]

BLOCK = 16 << 20
"""The size of the blocks in which tensors are read, in bytes."""


def scores(axes: Sequence[Axis], units: int, source: Checkpoint) -> list[float]:
    """Return the score of each of the ``units`` units along the axes, from the weights of ``source``."""
    sums = {axis.key: _sums(axis, units, source) for axis in axes}
    weights = {key: one for key, one in sums.items() if len(source[key].shape) > 1}
    return scores_by_weights(weights or sums)


def _sums(axis: Axis, units: int, source: Checkpoint, by: Sequence[float] | None = None) -> list[float]:
    """Return the sum of squares of the weights of each unit; ``by`` has a factor for each index along the axis.

    If the tensor has the weights of all experts, ``by`` may have these factors for each expert.

    The tensor is read in blocks of its first dimension, of about ``BLOCK`` bytes in double precision.
    """
    import numpy as np

    from ...engine.compute.reading import read_part
    from ...tensors.ops.casts import cast

    info = source[axis.key]
    along = np.zeros(axis.before)
    rest = tuple((0, size) for size in info.shape[1:])
    rows = max(1, BLOCK // (8 * prod(info.shape[1:])))
    for first in range(0, info.shape[0], rows):
        last = min(first + rows, info.shape[0])
        values = cast(read_part(source, info, ((first, last), *rest)), info.dtype, "float64")[0]
        squares = np.square(values)
        if by is not None and len(by) != axis.before:
            own = np.asarray(by).reshape(info.shape[0], axis.before)[first:last]
            squares *= own.reshape(
                own.shape[0], *(axis.before if dim == axis.dim else 1 for dim in range(1, values.ndim))
            )
        found = squares.sum(tuple(dim for dim in range(values.ndim) if dim != axis.dim))
        if axis.dim == 0:
            along[first:last] = found
        else:
            along += found
    if by is not None and len(by) == axis.before:
        along *= np.asarray(by)
    sums: list[float] = along.reshape(axis.parts, units, -1).sum((0, 2)).tolist()
    return sums


def scores_by_activations(
    axes: Sequence[Axis], units: int, source: Checkpoint, statistics: Statistics, *, are_experts: bool
) -> list[float]:
    """Return the score of each unit: what it contributes to the layers that use it, as a sum of squares.

    This is the mean square of each input times the sum of squares of its weights, as in Wanda
    (https://arxiv.org/abs/2306.11695) for single weights. The score of an expert is the mean length of its outputs
    times the router's weight (REAP, https://arxiv.org/abs/2510.13999), or else how often it is used. Raises ConfigError
    if the statistics lack what is needed.
    """
    keys = [axis.key for axis in axes]
    if are_experts:
        for known in (statistics.saliency(keys), statistics.load(keys)):
            if known is not None and len(known) == units:
                return list(known)
    found = [0.0] * units
    is_known = False
    for axis in axes:
        means = statistics.inputs(axis.key) if axis.side == "in" and not are_experts else None
        experts = source[axis.key].shape[0] if "experts" in axis.kind else 1
        if means is not None and len(means) == experts * axis.before:
            is_known = True
            found = [one + more for one, more in zip(found, _sums(axis, units, source, means), strict=True)]
    if not is_known:
        what = "how often experts are used" if are_experts else "the inputs of the layers that use them"
        raise ConfigError(
            f"{escape(statistics.path)} does not have {what}: {escape(keys[0])} and others.",
            hint="Leave --by out, so that weights decide, or list what is kept with --keep.",
        )
    return found
