"""Checks of the training: which tensors moved, gradient norms, skipped steps, and the metrics at the end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import torch

from ...util.text import apart, count, escape, grouped, listing, percent
from ..data.source import first_batch
from ..evaluation import loss_per_item
from ..state.model_tensors import state_tensors
from ..state.training_state import COLLAPSED, NONFINITE, RunProgress, TrainingState
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = [
    "ONE_BATCH",
    "blank_share",
    "clips_long_enough",
    "finite_figures",
    "finite_steps",
    "frozen_unchanged",
    "gradient_norm",
    "not_collapsed",
    "overfits_one_batch",
    "trained_tensors_moved",
    "update_sizes",
]


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


BLANK_PLATEAU = 0.995
READ = 0.9
"""A model with a lower letter error rate reads something."""
EARLY = 100
"""In fewer steps than this, a healthy CTC model may still output blanks alone."""
NO_CTC = "no CTC in this task"
NOT_EVALUATED = "nothing was evaluated"


def blank_share(figures: Mapping[str, float], *, steps: int, diverged: bool = False) -> Check:
    """Fail if a CTC model reads nothing: the blank in 99.5 % or more of the frames, and hardly a letter right.

    Long clips with short texts have as many blanks, but their texts are read. CTC models begin with blanks alone, so
    this is only a warning in a run of fewer than ``EARLY`` steps. ``figures`` are the metrics of the last evaluation.
    ``diverged`` is true if NaN or infinity ended the run; the check then advises another learning rate, but not longer
    training.
    """
    name = "share of blanks"
    if "blanks" not in figures:
        return Check(name, NOT_RUN, NO_CTC if figures else NOT_EVALUATED)
    share = figures["blanks"]
    said = f"{percent(share, 1)} of frames"
    if share < BLANK_PLATEAU or figures.get("cer", 1.0) < READ:
        return Check(name, PASS, said)
    advice = "train with a different lr" if diverged else "train longer, or with a different lr"
    status = FAIL if diverged or steps >= EARLY else WARN
    return Check(name, status, f"{said}: the model is stuck at blank outputs (the all-blank plateau); {advice}")


def clips_long_enough(progress: RunProgress) -> Check:
    """Warn about clips that CTC cannot align: CTC needs a frame for each label, and one between two equal labels.

    The count covers the training clips that the run saw in its first epoch, and the dev clips of the last evaluation.
    """
    name = "clips long enough"
    trained, seen = progress.too_short, progress.fresh
    evaluated = progress.figures.get("too_short")
    if trained is None and evaluated is None:
        return Check(name, NOT_RUN, NO_CTC if progress.step or progress.figures else "no step was taken")
    said = [f"{trained} of {count(seen, 'clip')} of train"] if trained is not None else []
    said += [f"{count(int(evaluated), 'clip')} of dev"] if evaluated is not None else []
    if trained or evaluated:
        return Check(name, WARN, f"{', '.join(said)} with fewer frames than CTC needs for the labels")
    return Check(name, PASS, f"too short: {', '.join(said)}")


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


COLLAPSE = "did not collapse"


def not_collapsed(state: TrainingState) -> Check:
    """Fail if the run collapsed (it cannot learn any more); warn if metrics of the last evaluation are suspicious.

    The task decides this by its methods ``collapsed`` and ``doubts``, which return the reason.
    """
    task, progress = state.job.task, state.progress
    if getattr(task, "collapsed", None) is None:
        return Check(COLLAPSE, NOT_RUN, "the task does not say how to recognise a collapse")
    if progress.ended == COLLAPSED:
        return Check(COLLAPSE, FAIL, f"stopped at step {progress.step}: {progress.collapse}")
    if progress.collapse:
        return Check(COLLAPSE, FAIL, progress.collapse)
    find_doubts = getattr(task, "doubts", None)
    doubts = find_doubts(progress.figures) if progress.figures and find_doubts is not None else ""
    return Check(COLLAPSE, WARN, doubts) if doubts else Check(COLLAPSE, PASS, f"{progress.step} steps")


ONE_BATCH = "one batch by heart"
BELOW = 0.05


def overfits_one_batch(figures: Mapping[str, float], metric: str, step: int, *, higher: bool = False) -> Check:
    """Pass if the metric on the only training batch is below 0.05, else fail.

    If ``higher`` is true, higher values are better, and the metric must be above 0.95.

    ``figures`` are the metrics of the last evaluation, after ``step`` steps.
    """
    if metric not in figures:
        return Check(ONE_BATCH, NOT_RUN, f"the task does not return the metric {metric}")
    value = figures[metric]
    bound = 1 - BELOW if higher else BELOW
    said, wanted = apart(value, bound)
    says = f"{metric} {said} after {step} steps; it must be {'above' if higher else 'below'} {wanted}"
    return Check(ONE_BATCH, PASS if (value > bound if higher else value < bound) else FAIL, says)
