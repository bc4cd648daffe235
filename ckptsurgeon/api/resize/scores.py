"""Reads the weights by which heads, channels and experts are chosen."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...planning.resizing.axes import Axis
from ...planning.resizing.select import scores_by_weights

__all__ = ["scores"]


def scores(axes: Sequence[Axis], units: int, source: Checkpoint) -> list[float]:
    """Return the score of each of the ``units`` units along the axes, from the weights of ``source``.

    One tensor is in memory at a time.
    """
    sums: dict[str, Sequence[float]] = {}
    for axis in axes:
        values = source.tensor(axis.key).double().square()
        other = [dim for dim in range(values.ndim) if dim != axis.dim]
        along = values.sum(other) if other else values
        sums[axis.key] = along.reshape(axis.parts, units, -1).sum((0, 2)).tolist()
        del values
    weights = {key: one for key, one in sums.items() if len(source[key].shape) > 1}
    return scores_by_weights(weights or sums)
