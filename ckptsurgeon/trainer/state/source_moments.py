"""Reads Adam's moments from the sources of a run's initial weights, for the parameters that were copied from them.

Coqui STT's checkpoints contain the moments under the names of the weights, below the roots ``optimizer.adam_m`` and
``optimizer.adam_v``; ``global_step`` below the root ``optimizer`` is the number of steps.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...api.inputs.operations import operate
from ...api.inputs.reopening import find_sources, reopen
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...errors import CheckpointError, ConfigError
from ...planning.plan.files import PlanSource
from ...planning.recipe import RecipeEntry
from ...planning.recipe_text import folder_of_recipe
from ...util.text import count, escape, listing
from ..job.init_checkpoint import InitCheckpoint
from .optimizer import Optimizer

__all__ = ["check_moments", "keep_moments"]

FIRST, SECOND, STATE = "optimizer.adam_m", "optimizer.adam_v", "optimizer"
STEP = "global_step"
OPTION = "train.keep_optimizer"


@dataclass(frozen=True)
class _Moments:
    """Adam's ``first`` and ``second`` moments in one source, and ``step``, the number of training steps of the source.

    Before a plan copies the tensors of a source, it may apply operations to them, such as splits. The same operations
    have been applied to these moments, so their keys are the keys after the operations. The operations have also been
    applied to ``ones``, tensors that contain only ones: if all values of a tensor are still 1, the operations only
    moved its values.
    """

    name: str
    first: Checkpoint
    second: Checkpoint
    ones: Checkpoint
    step: int

    def has(self, key: str) -> bool:
        """Return whether the tensor ``key`` has usable moments: the operations only moved their values."""
        return key in self.first and key in self.second and bool((self.ones.tensor(key) == 1).all())


def check_moments(init: InitCheckpoint | None, kind: str, keys: Collection[str]) -> str:
    """Return a note for the user: how many of the parameters ``keys`` start with moments, and from which sources.

    ``kind`` is the optimizer's name. Raises ConfigError if no parameter can start with moments.
    """
    if kind != "adamw":
        raise ConfigError(
            f"{OPTION} keeps Adam's moments, but train.optimizer is {kind}.",
            hint=f"Leave {OPTION} out, or write optimizer: adamw.",
        )
    if init is None or init.recipe is None:
        raise ConfigError(
            f"{OPTION} needs initial weights that ckpt wrote: their recipe says which source has the moments.",
            hint="Make initial weights with ckpt transplant SRC dst.yaml.",
        )
    with ExitStack() as stack:
        found = _open(init, stack)
        entries = _kept(init, found, keys)
        fresh = [key for key in keys if key not in entries]
        step = max(one.step for one in found.values())
    rest = f"; tensors without moments: {listing(fresh, 3, where='')}" if fresh else ""
    names = listing([escape(one.name) for one in found.values()], where="")
    return f"the moments of Adam for {count(len(entries), 'tensor')} come from {names}, after step {step}{rest}"


def keep_moments(optimizer: Optimizer, init: InitCheckpoint, frozen: Collection[str]) -> None:
    """Copy the moments and the step count of the sources to the parameters copied from them that are not frozen.

    Sources without moments are skipped.
    """
    keys = [key for key in optimizer.order if key not in frozen]
    with ExitStack() as stack:
        found = _open(init, stack)
        for key, entry in _kept(init, found, keys).items():
            assert entry.source is not None
            moments, parameter = found[entry.source], optimizer.parameters[optimizer.order.index(key)]
            optimizer.inner.state[parameter] = {
                "step": torch.tensor(float(moments.step), device=parameter.device),
                "exp_avg": _like(parameter, moments.first.tensor(entry.source_key)),
                "exp_avg_sq": _like(parameter, moments.second.tensor(entry.source_key)),
            }


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    return value.to(parameter.dtype).reshape(parameter.shape).to(parameter.device, copy=True)


def _open(init: InitCheckpoint, stack: ExitStack) -> dict[int, _Moments]:
    """Open the moments in the sources of the initial weights; return them by the index of the source in the recipe.

    ``stack`` closes the files when it is closed. Raises ConfigError if no source has moments.
    """
    assert init.recipe is not None
    sources = init.recipe.sources
    folder = folder_of_recipe(init.path, (one.path for one in sources))
    there, absent = find_sources(sources, folder, None, stack)
    found = {number: one for number in there if (one := _moments(sources[number], folder, stack)) is not None}
    if not found:
        why = "; ".join(absent.values()) or f"none in {listing([escape(one.name) for one in sources], where='')}"
        raise ConfigError(
            f"{OPTION}: no moments of Adam were found in the sources of {escape(init.path)}: {why}.",
            hint=f"Leave {OPTION} out. Moments are only read from checkpoints of Coqui STT ({FIRST} and {SECOND}).",
        )
    return found


def _moments(source: PlanSource, folder: str, stack: ExitStack) -> _Moments | None:
    """Open the moments in a source's files, and apply the source's operations; return None if there are no moments.

    ``folder`` is the folder of the initial weights, to which the source's path is relative. ``stack`` closes the files
    when it is closed.
    """
    path = os.path.join(folder, source.path)
    try:
        first, second = (stack.enter_context(reopen(replace(source, root=root), path)) for root in (FIRST, SECOND))
        state = stack.enter_context(reopen(replace(source, root=STATE, operations=()), path))
        plain = stack.enter_context(reopen(replace(source, root=FIRST, operations=()), path))
        ones = open_checkpoint({key: torch.ones(info.shape) for key, info in plain.items()}, unwrap=False)
        moved = operate([ones], source.operations)[0].checkpoint
        return _Moments(source.name, first, second, stack.enter_context(moved), int(state.tensor(STEP)))
    except (CheckpointError, KeyError):
        return None


def _kept(init: InitCheckpoint, found: Mapping[int, _Moments], keys: Collection[str]) -> dict[str, RecipeEntry]:
    """Return the recipe's entries for the ``keys`` whose tensors are complete copies of tensors of a source.

    Tensors of sources without moments are left out; ``found`` has the moments by the index of the source.
    """
    assert init.recipe is not None
    made = init.recipe.tensors
    return {key: made[key] for key in keys if key in made and _is_copy(made[key], found)}


COPIES: Sequence[str] = ("copy", "cast")


def _is_copy(entry: RecipeEntry, found: Mapping[int, _Moments]) -> bool:
    moments = found.get(entry.source) if entry.source is not None else None
    is_whole = entry.op in COPIES and not entry.policy and not entry.more and not entry.tied_to
    return is_whole and moments is not None and moments.has(entry.source_key)
