"""Merges weighted by statistics that ``ckpt stats`` makes of each model: Fisher information, or Gram matrices.

Tensors without statistics (for RegMean: all but the weights of linear layers) are not merged here: their step is
``linear``, with the same weights. RegMean++ (arXiv 2508.03121) is not here: its Gram matrices are of the inputs that
layers get in the merged model, which has to run while it is merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from ...errors import PlanError
from ...tensors.ops.regions import Array
from ..lora.decomposition import alone
from ._method import Merging, Slice, Tensors, merge_method
from ._parameters import Between, PerModel
from .arithmetic.pieces import in_pieces
from .arithmetic.products import combination, shares

__all__ = ["METHODS"]

_UNSURE = 1e14
"""The condition number from which on an inverse has no correct digits in double precision, or nearly none."""

_Missing = Annotated[str, ("error", "average")]


def _parts(weights: Sequence[float]) -> list[float]:
    """Return the weights divided by their sum; raises PlanError if all are zero."""
    if not any(weights):
        raise PlanError("the weights of all models are zero.", hint="Give a weight above zero.")
    return shares(weights)


@merge_method(
    "fisher",
    paper="https://arxiv.org/abs/2111.09832",
    compared="the paper's formula: equal within 1e-5 (float64: 1e-10)",
    elementwise=True,
    statistics="fisher",
)
def fisher(
    tensors: Tensors,
    *,
    weight: Annotated[PerModel, Between(0)] = (1.0,),
    floor: Annotated[float, Between(0)] = 1e-12,
    missing: _Missing = "error",
) -> Merging:
    """Return the mean of the models, each element weighted by its Fisher information in each model.

    The mean is sum_i c_i F_i W_i / sum_i c_i F_i, with ``weight`` for c_i. Fisher information below ``floor`` is raised
    to it; in elements where it is zero in all models, the mean has the weights c_i. Tensors that are not trained have
    no Fisher information and get this mean, too; with ``missing`` "average" so do tensors whose statistics were not
    collected.
    """
    parts = _parts(weight)

    def merged(at: Slice) -> Array:
        first, found = at.models[0], _checked(at)
        whole, total, plain = (at.xp.zeros_like(first) for _ in range(3))
        for model, own, part in zip(at.models, found, parts, strict=True):
            share = at.xp.clip(own, floor, None) * part
            whole += share
            total += share * (model - first)
            plain += (model - first) * part
        is_known = whole > 0
        made: Array = at.xp.where(is_known, total / at.xp.where(is_known, whole, whole + 1), plain)
        made += first
        return made

    return in_pieces(merged)


def _checked(at: Slice) -> Sequence[Array]:
    """Return the Fisher information in a slice; raises PlanError if a value is negative or not finite."""
    for number, one in enumerate(at.statistics, 1):
        if not bool(at.xp.all((one >= 0) & at.xp.isfinite(one))):
            raise PlanError(
                f"the Fisher information of model {number} has values that are negative or not finite.",
                hint="Make its statistics again: ckpt stats MODEL --fisher.",
            )
    return at.statistics


def _held(shape: tuple[int, ...], inputs: int, itemsize: int, parameters: Mapping[str, Any]) -> int:
    """Return the bytes for the Gram matrices of all models, their sum, its inverse, and LAPACK's working memory."""
    return 8 * shape[-1] ** 2 * (inputs + 4) if shape else 0


@merge_method(
    "regmean",
    paper="https://arxiv.org/abs/2212.09849",
    compared="the paper's formula: equal within 1e-5 (float64: 1e-10)",
    by_rows=True,
    passes=1,
    held=_held,
    statistics="gram",
)
def regmean(
    tensors: Tensors,
    *,
    weight: Annotated[PerModel, Between(0)] = (1.0,),
    alpha: Annotated[float, Between(0, 1)] = 0.9,
    ridge: Annotated[float, Between(0)] = 1e-6,
    missing: _Missing = "error",
) -> Merging | Array:
    """Return the weights of a linear layer whose outputs are nearest to each model's, for that model's own inputs.

    With the Gram matrix G_i of the inputs of model i and its weights W_i (inputs by outputs), the minimum is (sum_i
    G_i)^-1 sum_i G_i W_i. Each G_i is divided by the number of its inputs and multiplied by ``weight``. ``alpha``
    multiplies its elements outside the diagonal. ``ridge`` times the mean of the diagonal of the sum is added to the
    diagonal, so that directions that no input has get the mean of the models. Other tensors get this mean, too; with
    ``missing`` "average" so do linear layers whose inputs were not collected.
    """
    parts = _parts(weight)
    if len(tensors.shape) != 2 or 0 in tensors.shape:
        return combination(parts)
    with alone():
        steps = _steps(tensors, parts, alpha, ridge)

    def merged(at: Slice) -> Array:
        with alone():
            first, *others = at.wide(at.models)
            total = first + 0.0
            for model, step in zip(others, steps, strict=True):
                total += step.T @ (model - first) if tensors.is_transposed else (model - first) @ step
        made: Array = at.xp.asarray(total, dtype=at.models[0].dtype)
        return made

    return merged(tensors.whole()) if tensors.is_transposed else merged


def _steps(tensors: Tensors, parts: Sequence[float], alpha: float, ridge: float) -> list[Array]:
    """Return the matrix G_i (sum_j G_j)^-1 for each model i except the first.

    The merged tensor is the first model plus each other model's difference to the first times its matrix. With the
    matrix of the first model, these matrices sum to the identity. So a direction in which all models are equal is
    unchanged.
    """
    grams = [_scaled(tensors, model, alpha) * part for model, part in enumerate(parts)]
    inverse = _inverse(tensors, grams, parts, ridge)
    if inverse is None:
        return [_identity(tensors, grams[0]) * part for part in parts[1:]]
    return [gram @ inverse for gram in grams[1:]]


def _identity(tensors: Tensors, like: Array) -> Array:
    made: Array = tensors.xp.zeros_like(like)
    made.reshape(-1)[:: like.shape[0] + 1] += 1
    return made


def _scaled(tensors: Tensors, model: int, alpha: float) -> Array:
    """Return a model's Gram matrix, with elements off the diagonal times ``alpha``; PlanError if it is not finite."""
    gram = tensors.gram(model)
    if not bool(tensors.xp.all(tensors.xp.isfinite(gram))):
        raise PlanError(
            f"the Gram matrix of model {model + 1} has values that are not finite.",
            hint="Make its statistics again: ckpt stats MODEL --gram.",
        )
    size = gram.shape[0]
    diagonal = gram.reshape(-1)[:: size + 1] * (1 - alpha)
    gram = gram * alpha
    gram.reshape(-1)[:: size + 1] += diagonal
    return gram


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
        raise _singular() from error
    if not _norm(total) * _norm(found) < _UNSURE:
        raise _singular()
    return found


def _norm(matrix: Array) -> float:
    """Return the 1-norm of a matrix: the largest sum of the magnitudes in a column."""
    return float(abs(matrix).sum(0).max())


def _singular() -> PlanError:
    return PlanError(
        "the sum of the Gram matrices has no inverse: there are directions in which no input has a value.",
        hint="Add to its diagonal, --param ridge=1e-6, or collect statistics on more inputs.",
    )


METHODS = (fisher, regmean)
