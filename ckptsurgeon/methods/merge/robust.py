"""Median and trimmed mean, element by element: a single bad model cannot distort them."""

from __future__ import annotations

from typing import Annotated

from ...errors import ConfigError
from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/1803.01498"


@merge_method("median", paper=_PAPER, compared="NumPy: equal within 1e-6", elementwise=True)
def median(tensors: Tensors) -> Merging:
    """Return the median of the models; for an even number of models, the mean of the two in the middle."""
    return _middle(tensors, (tensors.count - 1) // 2)


@merge_method("trimmed_mean", paper=_PAPER, compared="NumPy: equal within 1e-6", elementwise=True)
def trimmed_mean(tensors: Tensors, *, trim: Annotated[float, Between(0, 0.5)] = 0.1) -> Merging:
    """Return the mean of the models without the largest and the smallest values, a share ``trim`` of each.

    If ``trim`` is not zero, at least the largest and the smallest value are left out, which needs three models. If it
    is 0.5, only the value in the middle is left, or the two values in the middle. Raises ConfigError if ``trim`` is not
    zero and there are fewer than three models.
    """
    cut = max(1, int(trim * tensors.count)) if trim else 0
    if tensors.count <= 2 * cut:
        if tensors.count < 3:
            raise ConfigError(
                f"trim {trim:g} leaves out the largest and the smallest value, which needs at least 3 models; given: "
                f"{tensors.count}.",
                hint="Give more models, or use median.",
            )
        cut = (tensors.count - 1) // 2
    return _middle(tensors, cut)


def _middle(tensors: Tensors, cut: int) -> Merging:
    """Return a function that merges: the mean without the ``cut`` largest and the ``cut`` smallest values."""

    def merged(at: Slice) -> Array:
        left = _sorted(at, list(at.models))[cut : tensors.count - cut]
        return left[0] if len(left) == 1 else _mean(at, left)

    return in_pieces(merged)


def _mean(at: Slice, values: list[Array]) -> Array:
    """Return the elementwise mean of arrays, computed so that huge values do not overflow.

    At each position, the values ascend from the first array to the last.
    """
    total = values[0] / len(values)
    for one in values[1:]:
        total += one / len(values)
    mean: Array = at.xp.minimum(at.xp.maximum(total, values[0]), values[-1])
    return mean


def _sorted(at: Slice, values: list[Array]) -> list[Array]:
    """Return arrays with the same values, sorted at each position: the first array has the smallest values.

    Whole arrays are compared and exchanged, which is fast for a few arrays. If one array has NaN at a position, all
    have NaN there afterwards.
    """
    for end in range(len(values) - 1, 0, -1):
        for i in range(end):
            low, high = values[i], values[i + 1]
            values[i], values[i + 1] = at.xp.minimum(low, high), at.xp.maximum(low, high)
    return values


METHODS = (median, trimmed_mean)
