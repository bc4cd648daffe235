"""Runs the controls: the same training from the given initial weights, from scratch, and from permuted weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...util.text import count
from ..checks.check import FAIL, PASS, WARN, Check
from ..checks.training import BLANK_PLATEAU
from ..data.source import first_batch
from ..evaluation import evaluate, loss_per_item
from ..job.job import Job, new_part_masks
from ..loop import TrainingLoop
from ..state.model_tensors import initialise, state_tensors
from ..tasks._task import is_higher_better
from .result import Arm, Controls

__all__ = [
    "KNOWLEDGE",
    "KNOWLEDGE_MOVED",
    "NONE",
    "SCALE_ONLY",
    "STARTS",
    "ControlRun",
    "beats",
    "check_controls",
    "knowledge_moved",
    "permute",
    "run_controls",
    "verdict_of",
]

KNOWLEDGE_MOVED = "knowledge moved"
KNOWLEDGE, SCALE_ONLY, NONE = "KNOWLEDGE", "SCALE ONLY", "NONE"
MARGIN = 0.05
"""One kind of initial weights beats another kind if it is better with every seed, and on average by over this share."""
MIN_SEEDS = 3


def beats(one: Arm, other: Arm, *, higher: bool = False) -> bool:
    """Return whether the runs of ``one`` are clearly better than the runs of ``other``, compared seed by seed.

    An Arm is the group of all runs from one kind of initial weights, with their metrics. ``higher`` is true if higher
    values are better.
    """
    sign = -1 if higher else 1
    gaps = [sign * (theirs - own) for own, theirs in zip(one.values, other.values, strict=True)]
    return all(gap > 0 for gap in gaps) and sum(gaps) / len(gaps) > MARGIN * abs(other.mean)


def verdict_of(warm: Arm, scratch: Arm, permuted: Arm, *, higher: bool = False) -> str:
    """Return KNOWLEDGE (warm beats scratch and permuted), SCALE ONLY (warm beats only scratch) or NONE.

    Warm runs start from the given initial weights, permuted runs from these weights with the values of each tensor
    permuted. Often a model learns better only because of the scale of the weights: from permuted English weights, a
    Russian model learned better than from torch's default initialisers. If warm beats permuted, but not scratch, the
    verdict is NONE, because the given weights are worth nothing.
    """
    if not beats(warm, scratch, higher=higher):
        return NONE
    return KNOWLEDGE if beats(warm, permuted, higher=higher) else SCALE_ONLY


def knowledge_moved(found: Controls) -> Check:
    """Return the check that the model learns better from its checkpoint than in the control runs without it.

    Its text has the verdict and the mean metric of each kind of run.
    """
    arms = [arm for arm in found.arms if arm.frozen == (found.decided_on == "frozen")]
    figures = ", ".join(f"{arm.mean:.3g} {arm.name}" for arm in arms)
    body = "body frozen" if found.decided_on == "frozen" else "all parts trained"
    says = f"{found.verdict}  {found.metric} {figures} ({body}, {count(found.seeds, 'seed')})"
    if {"scratch", "permuted"} <= set(found.plateau):
        says = f"{says}; the control runs from scratch and from permuted weights have learned nothing yet"
        # With a frozen body, only the head can learn. If it learns nothing, this is also an answer.
        if found.decided_on != "frozen":
            return Check(
                KNOWLEDGE_MOVED, FAIL if found.verdict == NONE else WARN, f"{says}: train longer to compare them"
            )
    if found.seeds < MIN_SEEDS:
        return Check(KNOWLEDGE_MOVED, WARN, f"{says}; fewer than {MIN_SEEDS} seeds are little evidence")
    return Check(KNOWLEDGE_MOVED, {KNOWLEDGE: PASS, SCALE_ONLY: WARN, NONE: FAIL}[found.verdict], says)


STARTS = ("warm", "scratch", "permuted")
LEARNED = 0.95
"""A model has learned nothing if its loss is still above this share of the loss before the first step."""


@dataclass(frozen=True)
class ControlRun:
    """The control run ``number`` of ``of``. ``value`` is its metric after the last step; None until it is done.

    ``way`` is the kind of initial weights: warm (the given weights), scratch, or permuted. If ``frozen`` is true, only
    new tensors are trained, that is, tensors that are in no source of the given weights.
    """

    way: str
    frozen: bool
    seed: int
    number: int
    of: int
    metric: str
    value: float | None = None


RunObserver = Callable[[ControlRun], None]
"""A function that gets each control run, once when the run begins and once when it is done."""


def run_controls(job: Job, *, seeds: int, observer: RunObserver | None = None) -> Controls:
    """Train from each kind of initial weights with each seed, and return the comparison.

    Raises ConfigError if the job has no initial weights, or nothing to evaluate on.
    """
    check_controls(job, seeds)
    assert job.init is not None
    notify = observer or (lambda run: None)
    metric = job.metric
    values: dict[tuple[str, bool], list[float]] = {}
    flat: set[tuple[str, bool]] = set()
    for run in _runs(job, seeds, metric):
        notify(run)
        value, learned = _train_control(job, run.way, run.seed, frozen=run.frozen)
        if not learned:
            flat.add((run.way, run.frozen))
        notify(replace(run, value=value))
        values.setdefault((run.way, run.frozen), []).append(value)
    arms = [Arm(way, frozen, tuple(found)) for (way, frozen), found in values.items()]
    deciding = [arm for arm in arms if arm.frozen] or arms
    verdict = verdict_of(*deciding[:3], higher=is_higher_better(job.task, metric))
    decided_on = "frozen" if deciding[0].frozen else "unfrozen"
    plateau = tuple(arm.name for arm in deciding[:3] if (arm.name, arm.frozen) in flat)
    return Controls(metric, seeds, job.settings.steps, tuple(arms), verdict, decided_on, plateau)


def _runs(job: Job, seeds: int, metric: str) -> list[ControlRun]:
    """Return all control runs in their order, with ``seeds`` seeds for each kind of initial weights.

    First come the runs in which only the new tensors are trained, and all other tensors are frozen. Then come the runs
    in which all tensors are trained. If there are no new tensors, or if the job trains adapters, all runs are of the
    second kind.
    """
    assert job.init is not None
    trains_head = job.init.new & job.target.tensors.keys() and not job.settings.lora.targets
    frozen = (True, False) if trains_head else (False,)
    begin = job.settings.seed
    chosen = list(product(frozen, STARTS, range(begin, begin + seeds)))
    return [ControlRun(way, held, seed, n, len(chosen), metric) for n, (held, way, seed) in enumerate(chosen, 1)]


def check_controls(job: Job, seeds: int) -> None:
    """Raise ConfigError if control runs cannot be compared: without seeds, given initial weights, or a dev split."""
    if seeds < 1:
        raise ConfigError(
            f"--seeds is {seeds}: there is nothing to compare.", hint="Pass --seeds 1 or more; 3 is usual."
        )
    if job.init is None:
        raise ConfigError(
            "--controls compares training from given initial weights with other starts, but none are given.",
            hint="Pass --init FILE.",
        )
    if job.dev is None:
        raise ConfigError(
            "--controls compares figures of a dev split, and the configuration has none.",
            hint="List manifests in train.data.dev.",
        )


def _train_control(job: Job, way: str, seed: int, *, frozen: bool) -> tuple[float, bool]:
    """Train from the initial weights ``way`` with one seed; return the last metric, and whether the model learned.

    If ``frozen`` is true, only new tensors are trained.
    """
    settings = replace(
        job.settings,
        seed=seed,
        patience=None,
        evaluate_every=job.settings.steps,
        save_every=job.settings.steps,
        keep_optimizer=job.settings.keep_optimizer and way == "warm",
    )
    own = replace(job, settings=settings)
    loop = TrainingLoop(own, _initial_model(own, way), frozen=_loaded_keys(job) if frozen else ())
    before = _first_loss(loop)
    loop.run()
    figures: Mapping[str, float] = loop.state.progress.figures
    if loop.job.metric not in figures:
        assert job.dev is not None
        figures = evaluate(loop.model, job.task, job.dev.read(0, 0), settings=settings)
    return figures[loop.job.metric], _has_learned(loop, figures, before)


def _has_learned(loop: TrainingLoop, figures: Mapping[str, float], before: float) -> bool:
    """Return whether a model has learned: with CTC, enough outputs are not blank; without CTC, the loss fell by 5 %.

    ``figures`` are the metrics of the last evaluation, ``before`` is the loss before the first step.
    """
    return figures["blanks"] < BLANK_PLATEAU if "blanks" in figures else _first_loss(loop) < LEARNED * before


def _first_loss(loop: TrainingLoop) -> float:
    batch = first_batch(loop.job.train, loop.settings.seed)
    return loss_per_item(loop.model, loop.job.task, [batch], settings=loop.settings)


def _loaded_keys(job: Job) -> list[str]:
    """Return the keys of the tensors whose values all come from sources; tensors tied to a new tensor are left out."""
    assert job.init is not None
    return [key for key in job.target.tensors if job.target.ties.get(key, key) not in job.init.new]


def _initial_model(job: Job, way: str) -> nn.Module:
    """Return the model with the initial weights ``way``; its new tensors are drawn with the job's seed."""
    assert job.init is not None
    if way == "scratch":
        model, _ = replace(job, init=None).model()
        return model
    model, plan = job.model()
    model.to("cpu")
    parts = new_part_masks(job, plan)
    initialise(model, job.target, sorted(job.init.drawn), job.settings.seed, parts=parts)
    if way == "permuted":
        permute(model, [*_loaded_keys(job), *parts], job.settings.seed, parts=parts)
    return model.to(job.device)


@torch.no_grad()
def permute(model: nn.Module, keys: Sequence[str], seed: int, *, parts: Mapping[str, Tensor] | None = None) -> None:
    """Permute the values inside each floating tensor in ``keys``: their scale stays, but all knowledge is lost.

    ``parts`` maps the keys of tensors that are partly new to masks: the values whose mask is true are not moved.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = state_tensors(model)
    done: set[int] = set()
    for key in keys:
        tensor = tensors[key]
        if tensor.is_floating_point() and id(tensor) not in done:
            done.add(id(tensor))
            brought = ~parts[key] if parts and key in parts else torch.ones(tensor.shape, dtype=torch.bool)
            values = tensor[brought]
            tensor[brought] = values[torch.randperm(values.numel(), generator=generator)]
