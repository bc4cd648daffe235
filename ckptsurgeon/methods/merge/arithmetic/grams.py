"""RegMean's formula: merges the weights of linear layers by the Gram matrices of their inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from ....errors import PlanError
from ....tensors.ops.regions import Array
from ...lora.decomposition import alone
from .._slices import Merging, Slice, Tensors
from ..linear import combination, shares

__all__ = ["by_grams", "held_by_grams", "positive_shares"]

_UNSURE = 1e14
"""If the condition number is this large or larger, an inverse in double precision has hardly any correct digits."""
_ROUNDED = 2.0**24
"""If the condition number is this large or larger, an inverse has only rounding errors: Gram matrices are in float32.

It is the condition number of the matrix whose diagonal is scaled to 1: inputs of small values are not rounded more than
others.
"""
_ROUNDING = 1e-4
"""How far elements of a Gram matrix may be from symmetric, in float32, relative to the root of g_ii g_jj."""
_LEAST = 2.0**-126
"""The smallest normal number of float32: smaller squares may have become 0, so it is added to each."""
_BAND = 64
"""How many rows of a Gram matrix are checked at once."""
_KEPT = 2
"""How many experts' matrices are cached: few, since the slices of a tensor that stacks experts are merged in order."""


def positive_shares(weights: Sequence[float]) -> list[float]:
    """Return the weights divided by their sum; raises PlanError if all are zero."""
    if not any(weights):
        raise PlanError("the weights of all models are zero.", hint="Give a weight above zero.")
    return shares(weights)


def held_by_grams(shape: tuple[int, ...], inputs: int, itemsize: int, parameters: Mapping[str, Any]) -> int:
    """Return the bytes for the Gram matrices of all models, their sum, its inverse, and LAPACK's working memory."""
    return 8 * shape[-1] ** 2 * (inputs + 4) * (_KEPT if len(shape) == 3 else 1) if shape else 0


def by_grams(tensors: Tensors, weights: Sequence[float], *, alpha: float, ridge: float) -> Merging | Array:
    """Return a function that merges slices by RegMean; a weight stored as (in, out) is merged at once, and returned.

    A tensor of two dimensions is the weight of a linear layer. A tensor of three dimensions stacks the weights of
    experts, each with its own Gram matrix. Other tensors are averaged. A weight stored as (in, out) cannot be merged in
    slices, because its rows belong to the inputs. ``alpha`` and ``ridge`` are the parameters of ``regmean``.
    """
    parts = positive_shares(weights)
    if len(tensors.shape) not in (2, 3) or 0 in tensors.shape:
        return combination(parts)
    steps = _Steps(tensors, parts, alpha, ridge)
    with alone():
        steps.of(0)

    def merged(at: Slice) -> Array:
        rows, columns = tensors.shape[-2:]
        with alone():
            first, *others = (one.reshape(-1, columns) for one in at.wide(at.models))
            total = first + 0.0
            begin, top = 0, at.offset // columns
            while begin < len(first):
                expert, above = divmod(top + begin, rows)
                here = slice(begin, min(len(first), begin + rows - above))
                for model, step in zip(others, steps.of(expert), strict=True):
                    change = model[here] - first[here]
                    total[here] += step.T @ change if tensors.is_transposed else change @ step
                begin = here.stop
        made: Array = at.xp.asarray(total, dtype=at.models[0].dtype)
        return made.reshape(at.models[0].shape)

    return merged(tensors.whole()) if tensors.is_transposed else merged


class _Steps:
    """For each expert, the matrices G_i (sum_j G_j)^-1 of all models except the first.

    The merged tensor is the first model's tensor plus, for each other model, its difference from the first model times
    its matrix. The matrices of all models sum to the identity, so a direction in which all models are equal is
    unchanged. Only the matrices of a few experts are kept in memory.
    """

    def __init__(self, tensors: Tensors, parts: Sequence[float], alpha: float, ridge: float) -> None:
        self._tensors, self._parts, self._alpha, self._ridge = tensors, parts, alpha, ridge
        self._known: OrderedDict[int, list[Array]] = OrderedDict()
        self._lock = Lock()

    def of(self, expert: int) -> list[Array]:
        """Return the matrices for the expert with this index; a tensor of two dimensions has only the expert 0."""
        with self._lock:
            if expert not in self._known:
                while len(self._known) >= _KEPT:
                    self._known.popitem(last=False)
                self._known[expert] = self._made(expert)
            return self._known[expert]

    def _made(self, expert: int) -> list[Array]:
        grams = [self._scaled(model, expert) * part for model, part in enumerate(self._parts)]
        inverse = _inverse(self._tensors, grams, self._parts, self._ridge)
        if inverse is None:
            return [_identity(self._tensors, grams[0]) * part for part in self._parts[1:]]
        for model in range(1, len(grams)):  # in place, so that no more than one matrix of each model is in memory
            grams[model] = grams[model] @ inverse
        return grams[1:]

    def _scaled(self, model: int, expert: int) -> Array:
        """Return a Gram matrix, with elements off the diagonal times ``alpha``; PlanError if it is not valid."""
        gram = self._tensors.gram(model, expert)
        if not bool(self._tensors.xp.all(self._tensors.xp.isfinite(gram))):
            raise PlanError(
                f"the Gram matrix of model {model + 1} has values that are not finite.",
                hint="Make the statistics of this model again: ckpt stats MODEL --gram.",
            )
        size = gram.shape[0]
        squares = gram.reshape(-1)[:: size + 1]
        if bool((squares < 0).any()):
            raise PlanError(
                f"the Gram matrix of model {model + 1} has negative values on its diagonal, which must be means of "
                "squares.",
                hint="Make the statistics of this model again: ckpt stats MODEL --gram.",
            )
        if not _is_gram(gram, squares):
            raise PlanError(
                f"the Gram matrix of model {model + 1} is not symmetric, or has elements that are larger than the "
                "diagonal allows: its values are not means of products of inputs.",
                hint="Make the statistics of this model again: ckpt stats MODEL --gram.",
            )
        diagonal = squares * (1 - self._alpha)
        gram = gram * self._alpha
        gram.reshape(-1)[:: size + 1] += diagonal
        return gram


def _is_gram(matrix: Array, squares: Array) -> bool:
    """Return whether a matrix is symmetric and each |g_ij| at most the root of g_ii g_jj, up to rounding to float32.

    ``squares`` is the diagonal. The matrix is looked at in bands of rows, which take little memory.
    """
    roots, size = (squares + _LEAST) ** 0.5, len(squares)
    for begin in range(0, size, _BAND):
        rows = slice(begin, begin + _BAND)
        bound = roots[rows, None] * roots
        uneven = abs(matrix[rows] - matrix[:, rows].T)
        if bool((uneven > _ROUNDING * bound).any()):
            return False
        if bool((abs(matrix[rows]) > (1 + _ROUNDING) * bound).any()):
            return False
    return True


def _identity(tensors: Tensors, like: Array) -> Array:
    made: Array = tensors.xp.zeros_like(like)
    made.reshape(-1)[:: like.shape[0] + 1] += 1
    return made


def _inverse(tensors: Tensors, grams: Sequence[Array], parts: Sequence[float], ridge: float) -> Array | None:
    """Return the inverse of the sum of the Gram matrices ``grams``; None if all inputs are zero.

    First, the ridge is added to the sum and, in the proportions ``parts``, to each of ``grams``, in place. Raises
    PlanError if the sum has no inverse.
    """
    total = grams[0] + 0.0
    for gram in grams[1:]:
        total += gram
    size = total.shape[0]
    mean = float(total.reshape(-1)[:: size + 1].sum()) / size
    if mean == 0:
        return None
    for one, part in zip((*grams, total), (*parts, 1.0), strict=True):
        one.reshape(-1)[:: size + 1] += ridge * mean * part
    try:
        found: Array = tensors.xp.linalg.inv(total)
    except tensors.xp.linalg.LinAlgError as error:
        raise _singular(size) from error
    if not _norm(total) * _norm(found) < _UNSURE or (
        ridge == 0 and not _scaled_condition(tensors, total, found) < _ROUNDED
    ):
        raise _singular(size)
    return found


def _scaled_condition(tensors: Tensors, matrix: Array, inverse: Array) -> float:
    """Return the condition number, in the 1-norm, of a Gram matrix that is scaled to a diagonal of ones."""
    squares = matrix.reshape(-1)[:: matrix.shape[0] + 1]
    roots = tensors.xp.where(squares > 0, squares, 1.0) ** 0.5
    return _norm(matrix / roots / roots[:, None]) * _norm(inverse * roots * roots[:, None])


def _norm(matrix: Array) -> float:
    """Return the 1-norm of a matrix: the largest sum of the magnitudes in a column."""
    return float(abs(matrix).sum(0).max())


def _singular(channels: int) -> PlanError:
    return PlanError(
        "the sum of its Gram matrices cannot be inverted: the inputs do not reach all directions of its "
        f"{channels} channels.",
        hint="Use a larger ridge, --param ridge=1e-6, or collect statistics on more inputs.",
    )
