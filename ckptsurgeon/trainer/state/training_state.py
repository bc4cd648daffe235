"""The state of a run: model, optimizer, moving average, data stream and progress, restored bit for bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError
from ..config.settings import ANNEALED, Settings
from ..data.source import BatchStream, share_batches
from ..folder.checkpoint_files import MOMENTS
from ..job.job import Job
from ..parallel.ranks import SINGLE_PROCESS, ParallelModel
from ..system.gradient_checkpointing import enable_gradient_checkpointing
from ..system.random_state import random_state, seed_all, seed_from, set_random_state
from .ema import EMA
from .lora import add_adapters
from .model_tensors import own_numbers, restore_numbers, restore_tensors, unsaved_buffers
from .optimizer import FreezeSchedule, Optimizer
from .sharded_state import load_moments, shard_state, state_without_moments
from .source_moments import keep_moments

__all__ = ["COLLAPSED", "DONE", "FAILED", "LOST", "NONFINITE", "PATIENCE", "RunProgress", "TrainingState", "anneal"]


class TrainingState:
    """Everything that decides how a run continues. Each process of a run has its own TrainingState.

    ``frozen`` are keys to freeze in addition to ``train.freeze``. ``lost_ranks`` has the ranks of the processes that
    ended before the run was done, each with the reason that the process reported.
    """

    def __init__(self, job: Job, model: nn.Module | ParallelModel, *, frozen: Collection[str] = ()) -> None:
        self.job, self.settings = job, job.settings
        self.parallel = model if isinstance(model, ParallelModel) else ParallelModel(model, job.ranks)
        if job.settings.lora.targets:
            frozen = [*frozen, *self._add_adapters()]
        self.freezing = FreezeSchedule(self.model, job.settings, frozen)
        self.freezing.record_digests()
        parameters = self.freezing.trained_parameters()
        if not set(parameters) - set(self.freezing.frozen(0)):
            of_code = "Set requires_grad of the parameters to train, in the code of the model."
            raise ConfigError(
                "everything is frozen: the first step has nothing to train.",
                hint="Remove patterns from train.freeze." if job.settings.freeze else of_code,
            )
        self.optimizer = Optimizer(
            job.settings, self.parallel.optimizer_parameters(parameters), self.freezing.rules,
            job.ranks if self.parallel.is_sharded else SINGLE_PROCESS,
        )  # fmt: skip
        if job.settings.keep_optimizer and job.init is not None:
            keep_moments(self.optimizer, job.init, self.freezing.frozen(0))
        if job.settings.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        self.ema = EMA(self.model, job.settings.ema) if job.settings.ema is not None else None
        self.stream = BatchStream(share_batches(job.train, job.ranks), job.settings.seed)
        self.progress = RunProgress()
        self.flops_per_place: float | None = None
        """Floating-point operations for one time step of one clip in a padded batch, counted in the first step."""
        self.lost_ranks: Mapping[int, str] = {}
        self.is_alone = False
        """Whether the other ranks have ended or wait. If so, a checkpoint contains nothing from the other ranks."""
        self._random_states: Sequence[Mapping[str, Any] | None] = ()
        self._seeded = False
        self._numbers = own_numbers(self.model)

    def _add_adapters(self) -> list[str]:
        """Add the adapters to the model; return the keys of all tensors that are not trained.

        Raises ConfigError if the model is sharded.
        """
        if self.parallel.is_sharded:
            raise ConfigError("train.lora needs the whole model in each process.", hint="Leave out --strategy fsdp.")
        return add_adapters(self.model, self.settings.lora, seed=self.settings.seed)

    @property
    def model(self) -> nn.Module:
        """The model itself, without the wrapper for several processes (DDP, FSDP)."""
        return self.parallel.module

    def apply_freezing(self) -> None:
        """Set which parameters the next step trains; wrap the model again, because DDP reads ``requires_grad`` once."""
        self.freezing.apply(self.progress.step)
        self.parallel.wrap()

    def seed_generators(self) -> None:
        """Seed the random generators of this process, at the first call only.

        So random numbers that were drawn before the training have no influence. In a resumed run, the saved states are
        restored. Ranks without a saved state are seeded from (seed, step, rank), so that they draw different dropout.
        """
        if self._seeded:
            return
        self._seeded = True
        rank, size = self.job.ranks.rank, self.job.ranks.size
        saved = self._random_states[rank] if len(self._random_states) == size else None
        if self._random_states or rank:
            seed_from(self.settings.seed, self.progress.step, rank)
        else:
            seed_all(self.settings.seed)
        if saved is not None:  # a state from a CPU lacks the GPU's generator, which keeps its new seed
            set_random_state(saved)

    def state_dict(self) -> dict[str, Any]:
        """Return the state on which the rest of the run depends, without the weights; every rank must call this.

        For a sharded model, the moments and the averaged weights are left out: each rank writes its own shards of them.
        """
        is_sharded = self.parallel.is_sharded
        return {
            "version": 1,
            "in_parts": is_sharded,
            "standing": asdict(self.progress),
            "position": self.stream.position,
            "optimizer": state_without_moments(self.optimizer) if is_sharded else self.optimizer.inner.state_dict(),
            "reached": self.optimizer.had_gradient,
            "flops": self.flops_per_place,
            "average": {} if self.ema is None or is_sharded else dict(self.ema.tensors),
            "random": self._gather_random_states(),
            "before": self.freezing.digests_before,
            "moved": self.freezing.moved_while_frozen,
            "unsaved": {key: buffer.detach().cpu() for key, buffer in unsaved_buffers(self.model).items()},
            "numbers": dict(own_numbers(self.model).items() - self._numbers.items()),
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore a saved run from its weights and its ``state_dict``; raises FormatError if the model differs."""
        restore_tensors(self.model, tensors, state.get("unsaved", {}), device=self.job.device)
        restore_numbers(self.model, state.get("numbers", {}))
        self.progress = RunProgress(**state["standing"])
        self.progress.ended = ""
        self.stream.seek(tuple(state["position"]))
        optimizer, average = state["optimizer"], state["average"]
        if MOMENTS in state:
            optimizer, average = load_moments(state[MOMENTS], optimizer, self.model, self.optimizer, self.job.ranks)
        elif self.parallel.is_sharded:
            optimizer, average = shard_state(optimizer, average, self.model, self.optimizer)
        self.optimizer.inner.load_state_dict(optimizer)
        self.optimizer.had_gradient.copy_(state["reached"])
        self.flops_per_place = state["flops"]
        if self.ema is not None:
            self.ema.load(average)
        self.freezing.digests_before, self.freezing.moved_while_frozen = state["before"], state["moved"]
        self._random_states = state["random"]

    def _gather_random_states(self) -> list[dict[str, Any] | None]:
        """Return the random state of every rank; if this rank saves alone (``is_alone``), None for all other ranks."""
        ranks = self.job.ranks
        if self.is_alone:
            return [random_state() if rank == ranks.rank else None for rank in range(ranks.size)]
        return list(ranks.all_gather(random_state()))


DONE, PATIENCE, NONFINITE, COLLAPSED, LOST = "done", "patience", "nonfinite", "collapsed", "lost"
FAILED = "failed"
"""These six strings are the reasons why a run ended; ``FAILED`` means that a check failed before the first step.

If a signal ended the run, the reason is the name of the signal.
"""


@dataclass
class RunProgress:
    """Counters and metrics of a run; in checkpoints, they have the same names as here.

    - ``step``: the number of steps done; ``seconds``: the time spent on steps and evaluations.
    - ``best``: the best value of the metric; ``best_step``: the number of steps before the evaluation that gave this
      value, with the lowest loss if several did; ``best_loss``: the loss of that evaluation; ``waited``: the number of
      evaluations since the value became better.
    - ``skipped``: the number of steps that were skipped because loss or gradients were not finite; ``in_a_row``: the
      number of such steps since the last finite step.
    - ``collapsed``: the number of steps in a row, up to the last step, for which the task's method ``collapsed``
      returned a reason; ``collapse``: the last reason.
    - ``first_loss``, ``last_loss``: the loss of the first and of the last step.
    - ``figures``: the metrics of the last evaluation; ``evaluated``: the number of steps before this evaluation.
    - ``ratios``: the norm of each tensor's change in the last step that was measured, relative to the tensor's norm.
    - ``norms``: statistics of the gradient norm: number of steps, how many were clipped, the largest norm, the sum.
    - ``fresh``: the number of clips seen in the first epoch; ``too_short``: the number of these clips that
      have too few frames for CTC (None without CTC).
    - ``lr_scale``: the factor by which evaluations have lowered the learning rate; ``compared``: the metric with which
      the next evaluation is compared; ``stalled``: the number of evaluations that did not
      improve enough (see ``anneal``).
    - ``ended``: the reason why the run ended, or ''.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_loss: float | None = None
    waited: int = 0
    skipped: int = 0
    in_a_row: int = 0
    collapsed: int = 0
    collapse: str = ""
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=lambda: {"steps": 0, "clipped": 0, "largest": 0.0, "sum": 0.0})
    too_short: int | None = None
    fresh: int = 0
    evaluated: int = 0
    lr_scale: float = 1.0
    compared: float | None = None
    stalled: int = 0
    ended: str = ""

    def count(self, row: dict[str, Any], clip: float | None) -> None:
        """Update the counters from a step's row in the log; ``clip`` is the norm to which gradients are clipped."""
        self.in_a_row = self.in_a_row + 1 if row["skipped"] else 0
        self.skipped += row["skipped"]
        self.first_loss = row["loss"] if self.first_loss is None else self.first_loss
        self.last_loss = row["loss"]
        if "too_short" in row:
            self.too_short = (self.too_short or 0) + row["too_short"]
            self.fresh += row["fresh"]
        norm = row["grad_norm"]
        if norm is not None:
            self.norms["steps"] += 1
            self.norms["sum"] += norm
            self.norms["largest"] = max(self.norms["largest"], norm)
            self.norms["clipped"] += clip is not None and norm > clip

    def improves(self, value: float, *, higher_is_better: bool) -> bool:
        """Record ``value``, the metric of the last evaluation; return whether its model is the best (NaN: never).

        Of equal values the one with the lower loss is better, since at the beginning all error rates may be 1. But
        ``waited`` counts on then: a loss may fall by next to nothing for ever.
        """
        is_better = not math.isnan(value)
        if is_better and self.best is not None:
            is_better = value > self.best if higher_is_better else value < self.best
        self.waited = 0 if is_better else self.waited + 1
        if not is_better and not (value == self.best and self._has_lower_loss()):
            return False
        self.best, self.best_step, self.best_loss = value, self.step, self.figures.get("loss")
        return True

    def _has_lower_loss(self) -> bool:
        loss, best = self.figures.get("loss"), self.best_loss
        return loss is not None and best is not None and (loss < best or (math.isnan(best) and not math.isnan(loss)))

    def waited_for(self, patience: int | None) -> bool:
        """Return whether the metric did not improve in the last ``patience`` evaluations; False if that is None."""
        return patience is not None and self.waited >= patience


def anneal(settings: Settings, progress: RunProgress, value: float, *, higher_is_better: bool) -> bool:
    """Multiply the learning rate by ``train.anneal`` if ``value``, an evaluation's metric, has not improved enough.

    Returns whether it did.

    ``newbob`` compares with the previous evaluation (speechbrain/nnet/schedulers.py, NewBobScheduler), ``plateau`` with
    the best so far (torch.optim.lr_scheduler.ReduceLROnPlateau). ``anneal_threshold`` is the smallest sufficient
    improvement, as a share of the earlier metric. The first ``anneal_patience`` evaluations without sufficient
    improvement do not lower the learning rate. NaN is never an improvement.
    """
    if settings.schedule not in ANNEALED:
        return False
    other = progress.compared
    if other is None:
        progress.compared = None if math.isnan(value) else value
        return False
    gain = (value - other if higher_is_better else other - value) / max(abs(other), 1e-12)
    is_best = settings.schedule == "plateau"
    is_better = gain > settings.anneal_threshold if is_best else gain >= settings.anneal_threshold
    if not math.isnan(value) and (is_better or not is_best):
        progress.compared = value
    if is_better:
        progress.stalled = 0 if is_best else progress.stalled  # newbob keeps the count, as in SpeechBrain
    elif progress.stalled < settings.anneal_patience:
        progress.stalled += 1
    else:
        progress.lr_scale, progress.stalled = progress.lr_scale * settings.anneal, 0
        return True
    return False
