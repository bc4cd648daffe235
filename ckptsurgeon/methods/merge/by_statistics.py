"""Merges by statistics that ``ckpt stats`` makes: Fisher information, Gram matrices or magnitudes of inputs.

Tensors without statistics (for RegMean and AIM: all except the weights of linear layers) are merged by other methods,
with the same weights: ``linear`` or, if there is a base, ``task_arithmetic``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from ...errors import PlanError
from ...tensors.ops.regions import Array
from ._method import Between, PerModel, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces
from .arithmetic.deltas import DeltaMixing, everything, mixed
from .arithmetic.grams import by_grams, held_by_grams, positive_shares
from .linear import cancel

__all__ = ["METHODS"]

_Missing = Annotated[str, ("error", "average")]


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
    to it; in elements in which it is zero in all models, the mean has the weights c_i. Tensors that are not trained
    have no Fisher information, and get the mean with the weights c_i, too. If ``missing`` is "average", so do tensors
    whose statistics were not collected.
    """
    parts = positive_shares(weight)

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
                hint="Make the statistics of this model again: ckpt stats MODEL --fisher.",
            )
    return at.statistics


@merge_method(
    "regmean",
    paper="https://arxiv.org/abs/2212.09849",
    compared="the paper's formula: equal within 1e-5 (float64: 1e-10)",
    by_rows=True,
    passes=1,
    held=held_by_grams,
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
    diagonal. So directions in which there is no input get the mean of the models. Other tensors get this mean, too. If
    ``missing`` is "average", so do linear layers whose inputs were not collected. Each expert of a tensor that stacks
    experts is merged by the inputs that were routed to it.
    """
    return by_grams(tensors, weight, alpha=alpha, ridge=ridge)


@merge_method(
    "regmean_plusplus",
    paper="https://arxiv.org/abs/2508.03121",
    compared="FusionBench 0.2.33: equal within 1e-5",
    by_rows=True,
    passes=1,
    held=held_by_grams,
    statistics="gram",
    merged_inputs=True,
)
def regmean_plusplus(
    tensors: Tensors,
    *,
    weight: Annotated[PerModel, Between(0)] = (1.0,),
    alpha: Annotated[float, Between(0, 1)] = 0.9,
    ridge: Annotated[float, Between(0)] = 1e-6,
    missing: _Missing = "error",
) -> Merging | Array:
    """Return the weights that ``regmean`` finds for the inputs of layers in the merged model, not in the models.

    ``ckpt stats --merged-with`` collects the Gram matrices: it merges one block after the other, and runs each model's
    own block on the outputs of the merged blocks before it. The parameters must be the same as for this merge.
    """
    return by_grams(tensors, weight, alpha=alpha, ridge=ridge)


@merge_method(
    "aim",
    paper="https://arxiv.org/abs/2502.02421",
    compared="the paper's formula: equal within 1e-6",
    base="required",
    by_rows=True,
    statistics="magnitudes",
)
def aim(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    omega: Annotated[float, Between(0, 1)] = 0.4,
    lambda_: float = 1.0,
    missing: Annotated[str, ("error", "unscaled")] = "error",
) -> Merging:
    """Return the base plus the weighted sum of the changes, smaller for inputs that are large in the base.

    The change of the weights of an input is multiplied by 1 - (1 - ``omega``) s. Here s is the mean magnitude of this
    input in the base, divided by the mean magnitude of the layer's largest input. So with ``omega`` 0 the weights of
    the largest input stay as in the base, and with 1 nothing is scaled. ``lambda`` multiplies the whole change. To
    scale the result of another merge, give this result as the only model. Tensors that are not weights of linear layers
    are not scaled. If ``missing`` is "unscaled", linear layers whose inputs were not collected are not scaled either.
    """
    plain = mixed(tensors, everything, DeltaMixing(weight, False, False, lambda_))
    if len(tensors.shape) != 2:
        return plain
    kept = _kept(tensors, omega)

    def merged(at: Slice) -> Array:
        factors = at.xp.asarray(kept, dtype=at.models[0].dtype)
        if tensors.is_transposed:
            first = at.offset // tensors.shape[-1]
            factors = factors[first : first + at.models[0].shape[0]][:, None]
        deltas = at.wide(at.deltas) if cancel(weight) else at.deltas
        total = at.xp.zeros_like(deltas[0])
        for delta, one in zip(deltas, weight, strict=True):
            total += delta * one
        total *= factors
        total *= lambda_
        made: Array = at.xp.asarray(at.onto(total), dtype=at.models[0].dtype)
        return made

    return merged


def _kept(tensors: Tensors, omega: float) -> Array:
    """Return, for each input, the share of the change of its weights that is kept; PlanError for invalid magnitudes."""
    xp, magnitudes = tensors.xp, tensors.magnitudes()
    if not bool(xp.all((magnitudes >= 0) & xp.isfinite(magnitudes))):
        raise PlanError(
            "the magnitudes of inputs have values that are negative or not finite.",
            hint="Make the statistics again: ckpt stats BASE --magnitudes.",
        )
    most = float(magnitudes.max()) if len(magnitudes) else 0.0
    kept: Array = 1 - (1 - omega) * magnitudes / (most or 1.0)
    return kept


METHODS = (fisher, regmean, regmean_plusplus, aim)
