"""Computes by what heads, channels, experts and layers are chosen: by weights, or by statistics of activations."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError
from ...planning.resizing.axes import Axis
from ...planning.resizing.select import scores_by_weights
from ...util.text import escape
from .statistics import Statistics

__all__ = ["scores", "scores_by_activations"]


def scores(axes: Sequence[Axis], units: int, source: Checkpoint) -> list[float]:
    """Return the score of each of the ``units`` units along the axes, from the weights of ``source``.

    One tensor is in memory at a time.
    """
    sums = {axis.key: _sums(axis, units, source) for axis in axes}
    weights = {key: one for key, one in sums.items() if len(source[key].shape) > 1}
    return scores_by_weights(weights or sums)


def _sums(axis: Axis, units: int, source: Checkpoint, by: Sequence[float] | None = None) -> list[float]:
    """Return the sum of squares of the weights of each unit; ``by`` has a factor for each index along the axis."""
    import torch

    values = source.tensor(axis.key).double().square()
    other = [dim for dim in range(values.ndim) if dim != axis.dim]
    along = values.sum(other) if other else values
    if by is not None:
        along = along * torch.tensor(by, dtype=torch.float64)
    found: list[float] = along.reshape(axis.parts, units, -1).sum((0, 2)).tolist()
    return found


def scores_by_activations(
    axes: Sequence[Axis], units: int, source: Checkpoint, statistics: Statistics, *, are_experts: bool
) -> list[float]:
    """Return the score of each unit: what it contributes to the layers that use it, as a sum of squares.

    This is the mean square of each input times the sum of squares of its weights, as in Wanda
    (https://arxiv.org/abs/2306.11695) for single weights. The score of an expert is how often it is used. Raises
    ConfigError if the statistics lack what is needed.
    """
    keys = [axis.key for axis in axes]
    if are_experts:
        load = statistics.load(keys)
        if load is not None and len(load) == units:
            return list(load)
    found = [0.0] * units
    known = False
    for axis in axes:
        means = statistics.inputs(axis.key) if axis.side == "in" and not are_experts else None
        if means is not None and len(means) == axis.before:
            known = True
            found = [one + more for one, more in zip(found, _sums(axis, units, source, means), strict=True)]
    if not known:
        what = "how often experts are used" if are_experts else "the inputs of the layers that use them"
        raise ConfigError(
            f"{escape(statistics.path)} does not have {what}: {escape(keys[0])} and others.",
            hint="Leave --by out, so that weights decide, or list what is kept with --keep.",
        )
    return found
