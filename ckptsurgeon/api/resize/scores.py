"""Computes the scores by which heads, channels, experts and layers are chosen: from weights, or from statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PlanError
from ...planning.resizing.axes import Axis
from ...planning.resizing.select import scores_by_weights
from ...util.text import escape, listing
from ..statistics.stored import Statistics

__all__ = ["Measures", "scores", "scores_by_activations"]

BLOCK = 16 << 20
"""The size of the blocks in which tensors are read, in bytes."""


@dataclass(frozen=True)
class Measures:
    """Scores heads, channels and experts by the weights of a checkpoint, or by ``statistics`` of its activations.

    ``named`` is a function that returns the open checkpoint, with the tensors under their names in the network.
    """

    named: Callable[[], Checkpoint]
    statistics: Statistics | None = None

    def scores(self, role: str, axes: Sequence[Axis], units: int) -> list[float]:
        """Return the score of each head, channel or expert along some axes.

        ``role`` says which of these they are ("experts"), and ``units`` is their number.
        """
        if self.statistics is None:
            return scores(axes, units, self.named())
        return scores_by_activations(axes, units, self.named(), self.statistics, are_experts=role == "experts")

    def loads(self, axes: Sequence[Axis], units: int) -> list[float]:
        """Return the frequency of use of each of ``units`` experts; [] if the statistics lack it."""
        found = self.statistics.load([axis.key for axis in axes]) if self.statistics is not None else None
        return list(found) if found is not None and len(found) == units else []

    def similarity(self, axes: Sequence[Axis]) -> list[list[float]]:
        """Return the matrix of cosines between the experts' rows in their router; ``axes`` include the router's.

        Raises PlanError if there is no router, or its values are not numbers.
        """
        import numpy as np

        from ...engine.compute.reading import read_part
        from ...tensors.ops.casts import cast

        source = self.named()
        others = [axis for axis in axes if "experts" not in axis.kind]  # leave out the biases of experts in gpt_oss
        routers = [axis for axis in others if len(source[axis.key].shape) == 2 and axis.dim == 0]
        if len(routers) != 1:
            raise PlanError(
                f"it is not known which tensor is the router of the experts in {escape(axes[0].key)} and others.",
                hint="List the groups of experts: --merge-experts 0+4,1+5.",
            )
        info = source[routers[0].key]
        rows = cast(read_part(source, info, tuple((0, size) for size in info.shape)), info.dtype, "float64")[0]
        if not np.isfinite(rows).all():
            raise PlanError(
                f"{escape(routers[0].key)} has NaN or infinite values.", hint="Find these values with ckpt check."
            )
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths, lengths, 1.0)
        found: list[list[float]] = (rows @ rows.T).tolist()
        return found


def scores(axes: Sequence[Axis], units: int, source: Checkpoint) -> list[float]:
    """Return the score of each head, channel or expert along the axes: the sum of the squares of its weights.

    ``units`` is the number of heads, channels or experts.
    """
    sums = {axis.key: _sums(axis, units, source) for axis in axes}
    weights = {key: one for key, one in sums.items() if len(source[key].shape) > 1}
    return scores_by_weights(weights or sums)


def _sums(axis: Axis, units: int, source: Checkpoint, by: Sequence[float] | None = None) -> list[float]:
    """Return, for each unit, the sum of the squares of its weights, each multiplied by its factor in ``by``, if given.

    ``by`` has a factor for each index along the axis. If the tensor has the weights of all experts, it has one for each
    expert and each index. The tensor is read in blocks of its first dimension, of about ``BLOCK`` bytes in double
    precision.
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
    """Return the score of each unit: its contribution to the layers that use it, as a sum of squares.

    It is the sum, over the unit's inputs to these layers, of mean square of the input times sum of squares of its
    weights; Wanda (https://arxiv.org/abs/2306.11695) does the same for single weights. The score of an expert is its
    REAP saliency (https://arxiv.org/abs/2510.13999), the mean of router weight times norm of its output; if the
    statistics lack it, how often the expert is used. Raises ConfigError if the statistics have none of these.
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
        what = "how often experts are used" if are_experts else "the inputs of these layers"
        lacked = keys if are_experts else [axis.key for axis in axes if axis.side == "in"] or keys
        raise ConfigError(
            f"{escape(statistics.path)} has no statistics on {what}: {listing(lacked, 2, where='')}.",
            hint="Leave --by out to choose by the size of weights, or list the indices to keep with --keep.",
        )
    return found
