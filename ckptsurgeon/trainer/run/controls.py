"""Controls: the same training from the init, from scratch, and from the weights of the init, permuted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...util.text import count
from ..checks.check import FAIL, NOT_RUN, PASS, WARN, Check
from ..checks.figures import BLANK_PLATEAU
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
"""One start beats another where it is better with every seed, and on average by this share of the other."""
MIN_SEEDS = 3


def beats(one: Arm, other: Arm, *, higher: bool = False) -> bool:
    """Whether one start is clearly better than another; their seeds are pairs. ``higher`` is better, else lower."""
    sign = -1 if higher else 1
    gaps = [sign * (theirs - own) for own, theirs in zip(one.values, other.values, strict=True)]
    return all(gap > 0 for gap in gaps) and sum(gaps) / len(gaps) > MARGIN * abs(other.mean)


def verdict_of(warm: Arm, scratch: Arm, permuted: Arm, *, higher: bool = False) -> str:
    """Return KNOWLEDGE (warm beats scratch and permuted), SCALE ONLY (it beats scratch alone) or NONE.

    Much of what looks like transfer is scale: of English weights permuted inside each tensor a Russian model learned
    better than of torch's default initialisers. A start that beats its permuted weights and not scratch brought
    nothing worth having, and is NONE.
    """
    if not beats(warm, scratch, higher=higher):
        return NONE
    return KNOWLEDGE if beats(warm, permuted, higher=higher) else SCALE_ONLY


def knowledge_moved(
    found: Controls | None, why: str = "--controls trains scratch and permuted weights beside it"
) -> Check:
    """Put the verdict and its figures in one line."""
    if found is None:
        return Check(KNOWLEDGE_MOVED, NOT_RUN, why)
    arms = [arm for arm in found.arms if arm.frozen == (found.decided_on == "frozen")]
    figures = ", ".join(f"{arm.mean:.3g} {arm.name}" for arm in arms)
    body = "body frozen" if found.decided_on == "frozen" else "all of it trained"
    says = f"{found.verdict}  {found.metric} {figures} ({body}, {count(found.seeds, 'seed')})"
    if {"scratch", "permuted"} <= set(found.plateau):
        says = f"{says}; scratch and permuted have learned nothing yet"
        if found.decided_on != "frozen":  # of a frozen body that is what was asked: what a head can learn from it
            return Check(
                KNOWLEDGE_MOVED, FAIL if found.verdict == NONE else WARN, f"{says}: train longer, or it says little"
            )
    if found.seeds < MIN_SEEDS:
        return Check(KNOWLEDGE_MOVED, WARN, f"{says}; fewer than {MIN_SEEDS} seeds say little")
    return Check(KNOWLEDGE_MOVED, {KNOWLEDGE: PASS, SCALE_ONLY: WARN, NONE: FAIL}[found.verdict], says)


STARTS = ("warm", "scratch", "permuted")
LEARNED = 0.95
"""A loss above this share of what it was before the first step is one of a model that has learned nothing."""


@dataclass(frozen=True)
class ControlRun:
    """One run, the ``number``-th of ``of``: it begins where ``value``, the metric that it reached, is None."""

    way: str
    frozen: bool
    seed: int
    number: int
    of: int
    metric: str
    value: float | None = None


Told = Callable[[ControlRun], None]
"""Is told of each run when it begins and when it is done."""


def run_controls(job: Job, *, seeds: int, told: Told | None = None) -> Controls:
    """Train every way with every seed; raises ConfigError where there is no init, or nothing to evaluate on."""
    check_controls(job, seeds)
    assert job.init is not None
    tell = told or (lambda run: None)
    metric = job.metric
    values: dict[tuple[str, bool], list[float]] = {}
    flat: set[tuple[str, bool]] = set()
    for run in _runs(job, seeds, metric):
        tell(run)
        value, learned = _trained(job, run.way, run.seed, frozen=run.frozen)
        if not learned:
            flat.add((run.way, run.frozen))
        tell(replace(run, value=value))
        values.setdefault((run.way, run.frozen), []).append(value)
    arms = [Arm(way, frozen, tuple(found)) for (way, frozen), found in values.items()]
    deciding = [arm for arm in arms if arm.frozen] or arms
    verdict = verdict_of(*deciding[:3], higher=is_higher_better(job.task, metric))
    decided_on = "frozen" if deciding[0].frozen else "unfrozen"
    plateau = tuple(arm.name for arm in deciding[:3] if (arm.name, arm.frozen) in flat)
    return Controls(metric, seeds, job.settings.steps, tuple(arms), verdict, decided_on, plateau)


def _runs(job: Job, seeds: int, metric: str) -> list[ControlRun]:
    """Return what is to be run; there is no probe where the init brought everything, and nothing new is trained."""
    assert job.init is not None
    frozen = (True, False) if job.init.new & job.target.tensors.keys() else (False,)
    begin = job.settings.seed
    chosen = list(product(frozen, STARTS, range(begin, begin + seeds)))
    return [ControlRun(way, held, seed, n, len(chosen), metric) for n, (held, way, seed) in enumerate(chosen, 1)]


def check_controls(job: Job, seeds: int) -> None:
    """Raise ConfigError where there is nothing to compare."""
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: there is nothing to compare.")
    if job.init is None:
        raise ConfigError("--controls compares a warm start with others, and there is no init.", hint="Give --init.")
    if job.dev is None:
        raise ConfigError("--controls compares figures of a dev split, and the configuration has none.")


def _trained(job: Job, way: str, seed: int, *, frozen: bool) -> tuple[float, bool]:
    """Train one way from one seed; returns the metric at the end, and whether anything was learned."""
    settings = replace(
        job.settings, seed=seed, patience=None, evaluate_every=job.settings.steps, save_every=job.settings.steps
    )
    own = replace(job, settings=settings)
    loop = TrainingLoop(own, _start(own, way), frozen=_body(job) if frozen else ())
    before = _first_loss(loop)
    loop.run()
    figures: Mapping[str, float] = loop.standing.figures
    if loop.metric not in figures:
        assert job.dev is not None
        figures = evaluate(loop.model, job.task, job.dev.read(0, 0), settings=settings)
    return figures[loop.metric], _has_learned(loop, figures, before)


def _has_learned(loop: TrainingLoop, figures: Mapping[str, float], before: float) -> bool:
    """Return whether a model has left the plateau on which it began."""
    return figures["blanks"] < BLANK_PLATEAU if "blanks" in figures else _first_loss(loop) < LEARNED * before


def _first_loss(loop: TrainingLoop) -> float:
    batch = first_batch(loop.job.train, loop.settings.seed)
    return loss_per_item(loop.model, loop.job.task, [batch], settings=loop.settings)


def _body(job: Job) -> list[str]:
    """Return the keys that the init brought whole, ties of what it did not bring left out."""
    assert job.init is not None
    return [key for key in job.target.tensors if job.target.ties.get(key, key) not in job.init.new]


def _start(job: Job, way: str) -> nn.Module:
    """Return the model as one way starts: what is new in it is drawn with the job's seed, whatever the way."""
    assert job.init is not None
    if way == "scratch":
        model, _ = replace(job, init=None).model()
        return model
    model, plan = job.model()
    model.to("cpu")
    parts = new_part_masks(job, plan)
    initialise(model, job.target, sorted(job.init.drawn), job.settings.seed, parts=parts)
    if way == "permuted":
        permute(model, [*_body(job), *parts], job.settings.seed, parts=parts)
    return model.to(job.device)


@torch.no_grad()
def permute(model: nn.Module, keys: Sequence[str], seed: int, *, parts: Mapping[str, Tensor] | None = None) -> None:
    """Shuffle the values inside each floating tensor: the same numbers, nothing learned.

    ``parts`` say where a tensor is drawn; only what it has from its source is shuffled, and stays there.
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
