"""Checks of training: frozen tensors did not change, trained tensors did; gradient norms; skipped steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

from ...util.text import apart, count, escape, listing, percent
from ..data.source import first_batch
from ..evaluation import loss_per_item
from ..state.model_tensors import state_tensors
from ..state.run_progress import NONFINITE
from ..state.training_state import TrainingState
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["finite_steps", "frozen_unchanged", "gradient_norm", "trained_tensors_moved", "update_sizes"]

MAX_CLIPPED = 0.5
MAX_SPIKE = 100.0


def gradient_norm(state: TrainingState) -> Check:
    """Check the run's gradient norms before clipping; warn in three cases, never fail.

    The cases are: the mean is outside the task's ``gradient_band`` (the range of healthy runs); more than half of the
    steps were clipped; the largest norm is over 100 times the mean of the other norms.
    """
    name = "gradient norm"
    norms = state.progress.norms
    if not norms["steps"]:
        return Check(name, NOT_RUN, "no step was taken")
    mean, clipped = norms["sum"] / norms["steps"], norms["clipped"] / norms["steps"]
    band = getattr(state.job.task, "gradient_band", None)
    said = apart(mean, *(band or ()), digits=2)[0]
    says = f"mean {said}, largest {norms['largest']:.2g}, {percent(clipped)} of steps clipped"
    if band is not None and not band[0] <= mean <= band[1]:
        return Check(name, WARN, f"{says}; healthy runs of this task have {band[0]:g} to {band[1]:g}")
    if clipped > MAX_CLIPPED:
        return Check(name, WARN, f"{says}: train.clip {state.settings.clip:g} decides the size of a step, not train.lr")
    # The mean of the other norms, because the largest norm is never far above a mean that contains it.
    others = (norms["sum"] - norms["largest"]) / max(norms["steps"] - 1, 1)
    if norms["steps"] > 1 and norms["largest"] > MAX_SPIKE * others:
        much = f"the largest is over {MAX_SPIKE:g} times the mean of the other norms, {others:.2g}"
        return Check(name, WARN, f"{says}: {much}")
    return Check(name, PASS, says)


def finite_steps(state: TrainingState) -> Check:
    """Count the steps that were skipped because loss or gradient was not finite; fail if such steps ended the run."""
    name = "finite steps"
    progress = state.progress
    if state.progress.ended == NONFINITE:
        says = f"stopped at step {progress.step}: {progress.in_a_row} steps in a row were not finite"
        return Check(name, FAIL, f"{says}; try a smaller train.lr or a longer train.warmup")
    if progress.skipped:
        return Check(name, WARN, f"{count(progress.skipped, 'step')} of {progress.step} skipped")
    return Check(name, PASS, f"{progress.step} of {progress.step}")


def frozen_unchanged(state: TrainingState) -> Check:
    """Check that frozen parameters and buffers did not change, and that the optimizer has no state for them."""
    name = "frozen tensors did not move"
    freezing, step = state.freezing, max(state.progress.step - 1, 0)
    frozen = freezing.frozen(step)
    ever = freezing.frozen(0)
    if not ever:
        return Check(name, NOT_RUN, "nothing is frozen")
    moved = list(dict.fromkeys([*freezing.moved_while_frozen, *freezing.changed(frozen)]))
    if moved:
        return Check(name, FAIL, f"{count(len(moved), 'tensor')} of {len(ever)} changed: {listing(moved, where='')}")
    stateful = [key for key in frozen if state.optimizer.has_state(key)]
    if stateful:
        return Check(name, FAIL, f"the optimizer has state for {listing(stateful, where='')}")
    thawed = f", {len(ever) - len(frozen)} unfrozen since" if len(ever) > len(frozen) else ""
    return Check(name, PASS, f"{len(ever)} of {len(ever)}, bit for bit{thawed}")


SAME = 1e-6
"""Losses with a smaller relative difference count as equal: a GPU may not compute the same value twice."""
MOST_TRIED = 64
"""The maximum number of tensors without a gradient that are tested for influence: each test needs a forward pass."""
MIN_UPDATE, MAX_UPDATE = 1e-6, 0.1
"""The usual range of the norm of a step's change of a tensor, divided by the tensor's norm; 1e-3 is typical."""


def trained_tensors_moved(state: TrainingState) -> Check:
    """Fail for trained tensors that never had a gradient, or did not change.

    Only warns about tensors on which the loss does not depend.
    """
    name = "trained tensors moved"
    if not state.progress.step:
        return Check(name, NOT_RUN, "no step was taken")
    frozen = set(state.freezing.frozen(state.progress.step - 1))
    learned = {key: seen for key, seen in state.optimizer.gradients_seen().items() if key not in frozen}
    without = [key for key, seen in learned.items() if not seen]
    unused = _unused(state, without)
    without = [key for key in without if key not in unused]
    if without:
        return Check(name, FAIL, f"{count(len(without), 'tensor')} never had a gradient: {listing(without, where='')}")
    learned = {key: seen for key, seen in learned.items() if key not in unused}
    still = set(learned) - set(state.freezing.changed(list(learned)))
    if still:
        return Check(name, FAIL, f"{count(len(still), 'tensor')} did not move: {listing(sorted(still), where='')}")
    says = f"{len(learned)} of {len(learned)}, each had a gradient"
    if unused:
        others = f"{count(len(unused), 'other')}: {listing(unused, 3, where='')}"
        return Check(name, WARN, f"{says}; the loss does not depend on {others}")
    return Check(name, PASS, says)


def _unused(state: TrainingState, keys: Sequence[str]) -> list[str]:
    """Return the keys in ``keys`` whose tensors do not influence the loss of the first batch.

    They belong to layers that do not run. Models of Hugging Face have such tensors: a pooler that the task does not
    use, or a vector for masked frames if no frame is masked. Returns [] if the model is sharded.
    """
    if not keys or state.parallel.is_sharded:
        return []
    job, model, tensors = state.job, state.model, state_tensors(state.model)
    batch = first_batch(job.train, job.settings.seed)
    ran: set[str] = set()
    leaves = {name: one for name, one in model.named_modules() if not list(one.children())}
    hooks = [one.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, one in leaves.items()]

    def loss(changed: Sequence[str]) -> float:
        saved, draws = [tensors[key].detach().clone() for key in changed], torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key in changed:
                # Random numbers are added, because a norm after the layer would undo the addition of a constant.
                tensors[key].add_(torch.randn(tensors[key].shape, generator=draws).to(tensors[key]))
        try:
            return loss_per_item(model, job.task, [batch], settings=job.settings)
        finally:
            with torch.no_grad():
                for key, value in zip(changed, saved, strict=True):
                    tensors[key].copy_(value)

    try:
        known = loss([])
    finally:
        for hook in hooks:
            hook.remove()
    tried = [key for key in keys if key.rpartition(".")[0] not in ran][:MOST_TRIED]
    if tried and math.isclose(loss(tried), known, rel_tol=SAME):
        return tried
    return [key for key in tried if math.isclose(loss([key]), known, rel_tol=SAME)]


def update_sizes(state: TrainingState) -> Check:
    """Check the size of each tensor's change in the last measured step, relative to the tensor's norm.

    Warns if the median of these ratios is not between 1e-6 and 0.1.
    """
    name = "update to weight"
    frozen = set(state.freezing.frozen(max(state.progress.step - 1, 0)))
    ratios = {key: ratio for key, ratio in state.progress.ratios.items() if key not in frozen and ratio > 0}
    if not ratios:
        return Check(name, NOT_RUN, "no step was measured")
    middle = statistics.median(ratios.values())
    largest = max(ratios, key=lambda key: ratios[key])
    says = f"median {middle:.1e}, largest {ratios[largest]:.1e} ({escape(largest)})"
    return Check(name, PASS if MIN_UPDATE <= middle <= MAX_UPDATE else WARN, says)
