"""Checks of the weights: loaded tensors equal their source, new ones fit their initialiser, none is NaN or constant."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...api.inputs.reopening import reopen
from ...api.verify import verify
from ...destinations.torch_module.tensors import own_part
from ...planning.plan.plan import Plan
from ...planning.target import TargetSpec
from ...util.text import count, escape, listing
from ..job.init_checkpoint import InitCheckpoint
from ..state.model_tensors import FullTensors, bits, initial_values, state_tensors
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = [
    "FEW_VALUES",
    "MAX_Z",
    "finite_tensors",
    "initialised_tensors",
    "loaded_tensors",
    "no_constant_tensors",
    "ties_kept",
    "z_score",
]


MAX_Z = 6.0
"""The largest accepted z-score; chance alone exceeds it in one of 500 million cases."""
FEW_VALUES = 30
"""The z-scores of tensors with fewer values than this are exact; for larger tensors an approximation suffices."""
UNUSUAL_Z = 4.0
"""A z-score is ignored if random draws of the same initialiser also reach it.

Then the values of a draw are not independent of each other, although z-scores assume that they are.
"""


def _infinite(value: Tensor) -> str:
    """Return the reason why the z-score of a tensor is infinite."""
    return "another constant" if torch.isfinite(value.double()).all() else "NaN or Inf values"


def z_score(value: Tensor, others: Sequence[Tensor]) -> float:
    """Return the difference, in standard errors, of a tensor from ``others``, which were drawn with other seeds.

    The result is infinite if the tensor has a value that is not finite. It is also infinite if the initialiser is
    constant, so that all ``others`` are equal, and the tensor differs from them.
    """
    if torch.equal(others[0], others[1]):  # a constant initialiser
        return 0.0 if torch.equal(value, others[0]) else math.inf
    mine, theirs = value.double().flatten(), torch.stack(list(others)).double().flatten(1)
    if not torch.isfinite(mine).all():
        return math.inf
    if mine.numel() >= FEW_VALUES:
        return _of_many(mine, theirs.flatten())
    scores = _of_few(torch.cat([mine[None], theirs]), theirs.flatten())
    found = torch.where(scores[1:].amax(0) < UNUSUAL_Z, scores[0], 0.0)
    return float(found.max())


def _of_few(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the z-scores (draws, 3) of the mean, the standard deviation and the most extreme value of each draw.

    ``mine`` (draws, n) has the values of a small tensor in each draw, ``theirs`` the values of all other draws. The
    most extreme value is the one furthest from the mean of ``theirs``. The scores are exact for values from a normal
    distribution: the variance of n such values follows a chi-squared distribution with ``n - 1`` degrees of freedom.
    For uniform values, the scores are smaller.
    """
    n, centre, spread = mine.shape[1], theirs.mean(), theirs.std().clamp(min=1e-300)
    mean_z = (mine.mean(1) - centre).abs() / (spread * math.sqrt(1 / n + 1 / theirs.numel()))
    alone = torch.special.ndtr(-((mine - centre).abs().amax(1) / spread))
    furthest_z = _z(2 * n * alone)
    if n == 1:
        return torch.stack([mean_z, torch.zeros_like(mean_z), furthest_z], 1)
    half = torch.tensor((n - 1) / 2, dtype=torch.float64)
    squares = half * mine.var(1) / spread**2
    less, more = torch.special.gammainc(half, squares), torch.special.gammaincc(half, squares)
    return torch.stack([mean_z, _z(2 * torch.minimum(less, more)), furthest_z], 1)


def _z(chance: Tensor) -> Tensor:
    """Return the z for which a standard normal value is above z or below -z with the probability ``chance``."""
    found: Tensor = -torch.special.ndtri(chance.clamp(1e-300, 1) / 2)
    return found


def _of_many(mine: Tensor, theirs: Tensor) -> float:
    centre, spread = theirs.mean(), theirs.std()
    share = 1 / mine.numel() + 1 / theirs.numel()
    mean_z = (mine.mean() - centre).abs() / (spread * math.sqrt(share))
    fourth = ((theirs - centre) ** 4).mean()
    error = ((fourth - spread**4).clamp(min=1e-3 * spread**4) * share).sqrt()  # the standard error of a variance
    spread_z = (mine.var() - spread**2).abs() / error
    width = theirs.max() - theirs.min()
    beyond = torch.maximum(mine.max() - theirs.max(), theirs.min() - mine.min()) / width.clamp(min=1e-300)
    # Values may lie outside the range of all draws, by up to half of the range's width.
    bounds_z = MAX_Z * 2 * float(beyond) if float(beyond) > 0.5 else 0.0
    return max(float(mean_z), float(spread_z), bounds_z)


INITIALISED = "initialised tensors fit"
OTHERS = 2
"""The number of draws that a tensor is compared with; each draw has another seed."""
OTHERS_OF_FEW = 32
"""The maximum number of draws for tensors with few values; no draw begins after ``DRAW_LIMIT_S`` seconds."""
DRAW_LIMIT_S = 3.0


def initialised_tensors(
    model: nn.Module, target: TargetSpec, keys: Collection[str], seed: int, *, parts: Mapping[str, Tensor] | None = None
) -> Check:
    """Check that the values of new tensors look as if their initialisers had drawn them.

    Each initialiser is run again with other seeds. The results must have about the same mean, standard deviation and
    bounds as the new tensor. Constants must be equal, but random values must differ. ``keys`` are the keys of the new
    tensors, which were drawn with ``seed``. ``parts`` maps the keys of tensors that are only partly new to masks: only
    the values whose mask is true are compared.
    """
    parts = {key: part for key, part in (parts or {}).items() if part.any()}
    tensors = state_tensors(model)
    wanted = [key for key in target.tensors if (key in keys or key in parts) and tensors[key].numel()]
    if not wanted:
        return Check(INITIALISED, NOT_RUN, "no tensor is known to be newly initialised")
    values = {key: _masked(tensors[key].detach().cpu(), parts.get(key)) for key in wanted}
    others = _other_draws(target, wanted, seed, parts)
    found = {key: z_score(values[key], others[key]) for key in wanted}
    wrong = [
        f"{key} ({f'z-score {z:.0f}' if math.isfinite(z) else _infinite(values[key])})"
        for key, z in found.items()
        if z > MAX_Z
    ]
    if wrong:
        return Check(
            INITIALISED,
            FAIL,
            f"of {count(len(wanted), 'tensor')}, {count(len(wrong), 'differs', 'differ')} from what the initialiser "
            f"draws: {listing(wrong, where='')}",
        )
    same = [key for key in wanted if _repeats(values[key], others[key])]
    if same:
        return Check(INITIALISED, FAIL, f"another seed gives the same values: {escape(listing(same, where=''))}")
    rest = f", {len(parts)} of them only in part" if parts else ""
    return Check(INITIALISED, PASS, f"{len(wanted)} of {len(wanted)}{rest}, largest z-score {max(found.values()):.1f}")


def _masked(value: Tensor, part: Tensor | None) -> Tensor:
    return value if part is None else value[part]


def _other_draws(
    target: TargetSpec, keys: list[str], seed: int, parts: Mapping[str, Tensor]
) -> dict[str, list[Tensor]]:
    """Return, for each of ``keys``, the tensors that its initialiser draws with seeds other than ``seed``.

    A tensor with few values is drawn with more seeds, because two draws do not give its standard deviation precisely
    enough. ``parts`` maps the keys of tensors that are only partly new to masks: only the values whose mask is true are
    returned.
    """
    others: dict[str, list[Tensor]] = {key: [] for key in keys}
    until, more = time.monotonic() + DRAW_LIMIT_S, 0
    while keys and (more < OTHERS or time.monotonic() < until):
        more += 1
        for key, value in initial_values(target, keys, seed + more):
            others[key].append(_masked(value, parts.get(key)).clone())
        if more == OTHERS:  # constants are the same with every seed
            keys = [key for key in keys if others[key][0].numel() < FEW_VALUES and not torch.equal(*others[key])]
        if more == OTHERS_OF_FEW:
            break
    return others


def _repeats(value: Tensor, others: list[Tensor]) -> bool:
    return not torch.equal(others[0], others[1]) and any(torch.equal(value, other) for other in others)


LOADED = "loaded tensors equal their source"


def loaded_tensors(model: nn.Module, init: InitCheckpoint | None, plan: Plan | None) -> Check:
    """Check bit for bit that the model's tensors equal the checkpoint ``init``, and that ``init`` equals its sources.

    The recipe in ``init`` lists the sources. ``plan`` has, for each tensor of the model, the tensor of ``init`` from
    which it was loaded.
    """
    if init is None or plan is None:
        return Check(LOADED, NOT_RUN, "no init: every tensor is newly initialised")
    tensors = state_tensors(model)
    wrong = _differing(tensors, plan)
    if wrong:
        return Check(
            LOADED, FAIL, f"{count(len(wrong), 'tensor')} of {len(tensors)} differ: {listing(wrong, where='')}"
        )
    if init.recipe is None:
        says = f"{len(plan.steps)} of {len(tensors)}, bit for bit; the sources of the init are not known"
        return Check(LOADED, PASS, says)
    found = verify(init.path)
    if not found.ok:
        first = found.failed[0]
        return Check(LOADED, FAIL, f"the init differs from its recipe: {escape(first.key or init.path)} {first.why}")
    from_source = found.checked - found.drawn
    gone = len(found.not_compared or {})
    rest = f"; {gone} of them only by checksum, because their source was not found" if gone else ""
    return Check(LOADED, PASS, f"{from_source} of {from_source}, bit for bit{rest}")


def _differing(tensors: Mapping[str, Tensor], plan: Plan) -> list[str]:
    """Return the keys of the tensors that differ from the plan's source after the plan's operations changed the source.

    A plan has operations if the files of a model have other tensors than the network, such as one for each expert.
    """
    wrong = []
    planned = {step.key: step for step in plan.steps}
    with reopen(plan.sources[0]) as checkpoint:
        for key, tensor in tensors.items():
            step = planned.get(key)
            if step is None or step.source_key not in checkpoint:
                wrong.append(key)
                continue
            wanted = checkpoint.tensor(step.source_key).to(tensor.dtype).reshape(tensor.shape)
            if not torch.equal(bits(tensor), bits(wanted)):
                wrong.append(key)
    return wrong


def ties_kept(model: nn.Module, ties: Mapping[str, str]) -> Check:
    """Check that tied tensors still share their memory; ``ties`` maps a key to the key that it is tied to."""
    name = "ties are still ties"
    if not ties:
        return Check(name, NOT_RUN, "the model has no tied tensors")
    tensors = state_tensors(model)
    loose = [key for key, owner in ties.items() if _storage(tensors[key]) != _storage(tensors[owner])]
    if loose:
        return Check(name, FAIL, f"{listing(loose, where='')} are no longer tied")
    return Check(name, PASS, f"{len(ties)} of {len(ties)}")


def _storage(tensor: Tensor) -> int:
    return own_part(tensor).data_ptr()


def finite_tensors(model: nn.Module, average: Mapping[str, Tensor] | None = None) -> Check:
    """Fail if a tensor of the model or of ``average`` (the moving average of its weights) has NaN or Inf."""
    name = "no NaN, no Inf"
    found, averaged = _floating(model), average or {}
    wrong = [key for key, tensor in found.items() if not bool(torch.isfinite(tensor).all())]
    wrong += [f"average of {key}" for key, tensor in averaged.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        return Check(name, FAIL, f"NaN or Inf in {count(len(wrong), 'tensor')}: {listing(wrong, where='')}")
    return Check(name, PASS, f"{len(found) + len(averaged)} of {len(found) + len(averaged)} tensors")


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
