"""Checks that no tensor or metric is NaN or Inf, and that no tensor is constant although it should be random."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ...planning.target import TargetSpec
from ...util.text import count, grouped, listing
from ..state.model_tensors import FullTensors, initial_values, state_tensors
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["finite_figures", "finite_tensors", "no_constant_tensors"]


def finite_tensors(model: nn.Module, average: Mapping[str, Tensor] | None = None) -> Check:
    """Fail if a tensor of the model or of ``average`` (the moving average of its weights) has NaN or Inf."""
    name = "no NaN, no Inf"
    found, averaged = _floating(model), average or {}
    wrong = [key for key, tensor in found.items() if not bool(torch.isfinite(tensor).all())]
    wrong += [f"average of {key}" for key, tensor in averaged.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        return Check(name, FAIL, f"NaN or Inf in {count(len(wrong), 'tensor')}: {listing(wrong, where='')}")
    return Check(name, PASS, f"{len(found) + len(averaged)} of {len(found) + len(averaged)} tensors")


def finite_figures(figures: Mapping[str, float], decisive: Collection[str]) -> Check:
    """Look for NaN and Inf in the metrics of an evaluation (``figures``).

    Fails if a metric named in ``decisive``, such as the loss, is not finite; warns about other metrics.
    """
    name = "figures are numbers"
    if not figures:
        return Check(name, NOT_RUN, "nothing was evaluated")
    wrong = [key for key, value in figures.items() if not math.isfinite(value)]
    if wrong:
        said = grouped([(key, str(figures[key])) for key in wrong], "{names} {why}", where="")
        return Check(name, FAIL if set(wrong) & set(decisive) else WARN, said)
    return Check(name, PASS, f"{len(figures)} of {len(figures)}")


def no_constant_tensors(model: nn.Module, target: TargetSpec, seed: int, zeroed: Collection[str] = ()) -> Check:
    """Look for tensors of the model that are constant, although their initialiser draws random values (with ``seed``).

    Fails for a matrix. Only warns about a vector, because it may have been set to zero on purpose. ``zeroed`` are the
    keys of tensors that were set to zero on purpose when the initial weights were made; they are not reported.
    """
    name = "no constant tensors"
    found = {key: tensor for key, tensor in _floating(model).items() if _is_constant(tensor)}
    zeros = [key for key in zeroed if key in found and not bool(found[key].any())]
    constant = [key for key in found if key not in zeros]
    declared = {key for key, value in initial_values(target, constant, seed) if _is_constant(value)}
    odd = [key for key in constant if key not in declared]
    matrices = [key for key in odd if len(target.tensors[key].shape) > 1]
    if matrices:
        return Check(name, FAIL, f"{listing(matrices, where='')}: constant, but the initialiser draws random values")
    if odd:
        return Check(name, WARN, f"{listing(odd, where='')}: constant, but the initialiser draws random values")
    rest = f"; constant by their initialisers: {len(constant)}" if constant else ""
    rest += f"; set to zero by the recipe of the init: {len(zeros)}" if zeros else ""
    return Check(name, PASS, f"{len(_floating(model))} tensors{rest}")


def _floating(model: nn.Module) -> Mapping[str, Tensor]:
    return FullTensors({key: value for key, value in state_tensors(model).items() if value.is_floating_point()})


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.reshape(-1)[0]).all())
