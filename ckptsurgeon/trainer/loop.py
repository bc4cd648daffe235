"""The loop: steps, evaluations, checkpoints, and an end that is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn

from .data.source import Source
from .evaluation import evaluate
from .folder.run_folder import RunFolder
from .job.job import Job, unknown_metric_error
from .log import PendingStep, TrainingLog, log_rows
from .parallel.parallel_model import ParallelModel
from .parallel.ranks import LostRanksError
from .state.optimizer import lr_factor
from .state.training_state import TrainingState
from .step import gradient_step
from .system.compiling import compiled_loss
from .system.device import peak_bytes
from .system.flops import FlopCounter, peak_flops
from .system.random_state import random_state, set_random_state
from .system.signals import StopSignal
from .tasks._load import explain_task_errors
from .tasks._task import is_higher_better

__all__ = ["COLLAPSED", "DONE", "LOST", "NONFINITE", "PATIENCE", "Observer", "TrainingLoop"]

DONE, PATIENCE, NONFINITE, COLLAPSED, LOST = "done", "patience", "nonfinite", "collapsed", "lost"
"""How a run may end beside a signal's name."""

COLLAPSED_STEPS = 20
"""Steps in a row of which a task says that nothing more can come, after which a run ends."""

ROWS_ON_GPU = 10
"""Steps whose figures are fetched from a GPU together: each fetch waits for it."""

Observer = Callable[[Mapping[str, Any]], None]
"""Is given each row of the log."""


class TrainingLoop(TrainingState):
    """Drives a run, and tells an ``observer`` of it. Of several processes each takes the same way through it."""

    def __init__(
        self, job: Job, model: nn.Module | ParallelModel, *, frozen: Collection[str] = (), folder: RunFolder | None = None,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        super().__init__(job, model, frozen=frozen, folder=folder)
        self._observer = observer or (lambda row: None)
        self._flush_every = 1 if job.device.type == "cpu" else ROWS_ON_GPU
        self._log = TrainingLog(None, 0)
        self._pending: list[PendingStep] = []
        self._told = ""
        self.stopped = ""
        peak = peak_flops(job.settings, job.device)
        self._peak = peak * job.ranks.size if peak is not None else None
        self._compiled = compiled_loss(job)

    def run(self, *, until: int | None = None, stop: StopSignal | None = None, tensorboard: bool = False) -> str:
        """Train to the end, or until ``until`` steps are done; returns why it ended. Raises OutputError."""
        stop, until = stop or StopSignal(), min(until or self.settings.steps, self.settings.steps)
        self._enter()
        self._log = TrainingLog(self.folder, self.standing.step, tensorboard=tensorboard)
        try:
            with self.job.ranks.explaining():
                self.job.ranks.agreed(None)  # here the others wait while the first one checks
                self.standing.ended = self._steps(until, stop)
                self._keep_last()
                if self.job.ranks.size > 1:  # one that came behind the last step: all go the same way from here
                    stop.name = next(filter(None, self.job.ranks.agreed(stop.name)), "")
                    self.stopped = stop.name
        except LostRanksError as error:
            self.lost, self.standing.ended = error.ranks, LOST
            self._note(time.perf_counter())
            if self.standing.step and not self.spread.is_sharded:  # of which a part is gone
                self.save()
        finally:
            self._log.close()
        return self.standing.ended

    def _keep_last(self) -> None:
        """Let the last be the best, where nothing is evaluated."""
        standing = self.standing
        if self.job.dev is None and standing.ended not in (NONFINITE, COLLAPSED) and standing.step:
            self.save_best()

    def _steps(self, until: int, stop: StopSignal) -> str:
        standing, thaws = self.standing, self.freezing.steps()
        self._begin(standing.step)
        began = since = time.perf_counter()
        before = standing.seconds
        ended = standing.waited and standing.waited_for(self.settings.patience)
        why = PATIENCE if ended else ""  # a run that ended, and was resumed
        if standing.step and standing.evaluated < standing.step and self._due()["evaluate"]:
            why = why or self._evaluate()  # what a process that ended has kept the run from
        while standing.step < until and not why:
            if standing.step in thaws:
                self._begin(standing.step)
            self._pending.append(self._step(stop))
            now = time.perf_counter()
            standing.seconds = before + now - began
            due = self._due()
            if (
                any(due.values())
                or self._heard(stop)
                or len(self._pending) >= self._flush_every
                or standing.step == until
            ):
                why = self._note(since)
                since = time.perf_counter()
            if not why and due["evaluate"]:
                why = self._evaluate()
                since = time.perf_counter()
            signalled = self._heard(stop)  # asked once: one that comes while saving is for the next step
            ends = standing.step == until or signalled or why == PATIENCE
            if ends:  # a signal that came since
                why = self._note(since) or why
            if why not in (NONFINITE, COLLAPSED) and (due["save"] or ends):
                self.save()
                since = time.perf_counter()
            why = why or signalled
        return why or (DONE if standing.step >= self.settings.steps else "")

    def _heard(self, stop: StopSignal) -> str:
        """Return the signal that ends the run: of several processes, what all of them were told in the last step."""
        if self.job.ranks.size > 1:
            stop.name = self._told or stop.name
            return self._told
        return stop.name

    def _begin(self, step: int) -> None:
        """Let learn what learns from a step on."""
        self.freezing.begin(step)
        self.spread.begin()

    def _due(self) -> dict[str, bool]:
        step, last = self.standing.step, self.standing.step == self.settings.steps
        return {
            "evaluate": step % self.settings.evaluate_every == 0 or last,
            "save": step % self.settings.save_every == 0 or last,
        }

    def _step(self, stop: StopSignal) -> PendingStep:
        """Take one step; where that fails the run stands where it stood."""
        standing, position = self.standing, self.stream.position
        random = random_state() if self.job.ranks.size > 1 else None
        rates = self.optimizer.rates(lr_factor(self.settings, standing.step))
        batches, fresh = [], 0
        for _ in range(self.settings.accumulate):
            batches.append(next(self.stream))
            fresh += self.stream.position[0] == 0
        measured = (standing.step + 1) % self.settings.evaluate_every == 0 or standing.step + 1 == self.settings.steps
        old = [one.detach().clone() for one in self.optimizer.parameters] if measured else []
        begin = getattr(self.job.task, "begin_step", None)
        if begin is not None:
            begin(self.model, standing.step)
        try:
            counting = FlopCounter() if self._flops is None else nullcontext()
            with explain_task_errors(self.settings.task, there=True), counting as counted:
                stepped = gradient_step(
                    self.spread, self.job.task, batches, self.optimizer, settings=self.settings, fresh=fresh,
                    heard=lambda: stop.name, loss_of=self._compiled if counted is None else None,
                )  # fmt: skip
        except Exception:
            self.stream.go_back(position)
            if random is not None:
                set_random_state(random)
            raise
        if counted is not None:
            self._flops = counted.flops / max(stepped.own_places, 1)
        if measured:
            standing.ratios = self.optimizer.moved_since(old)
        if self.average is not None:
            self.average.update()
        standing.step += 1
        self._told = stepped.stop
        return standing.step, rates, stepped

    def _note(self, since: float) -> str:
        """Write steps to the log; returns NONFINITE or COLLAPSED where too many in a row were of that kind."""
        pending, self._pending = self._pending, []
        for row in log_rows(pending, since, flops=self._flops or 0.0, peak=self._peak):
            row["peak_bytes"] = peak_bytes(self.job.device)
            row["seconds"] = self.standing.seconds
            self.standing.count(row, self.settings.clip)
            self._log.write(row)
            self._observer(row)
            if self.standing.in_a_row > self.settings.nonfinite:
                return NONFINITE
            if self._has_collapsed(row):
                return COLLAPSED
        return ""

    def _has_collapsed(self, row: Mapping[str, Any]) -> bool:
        look = getattr(self.job.task, "collapsed", None)
        self.standing.collapse = look(row["parts"]) if look is not None else ""
        self.standing.collapsed = self.standing.collapsed + 1 if self.standing.collapse else 0
        return self.standing.collapsed >= COLLAPSED_STEPS

    def _evaluate(self) -> str:
        """Evaluate, keep the best; returns PATIENCE where it has not become better for long."""
        job, standing = self.job, self.standing
        if job.dev is None:
            return ""
        takes_part = self.job.ranks.is_first or self.spread.is_sharded
        standing.figures = self.job.ranks.told(self._figures(job.dev) if takes_part else {})
        standing.evaluated = standing.step
        self._log.write({"step": standing.step, "dev": standing.figures})
        self._log.flush()
        self._observer({"step": standing.step, "dev": standing.figures})
        name = self.metric
        if name not in standing.figures:
            raise unknown_metric_error(name, standing.figures)
        value = standing.figures[name]
        if standing.improves(value, higher_is_better=is_higher_better(job.task, name)):
            self.save_best()
        return PATIENCE if standing.waited_for(self.settings.patience) else ""

    def _figures(self, dev: Source) -> dict[str, float]:
        task, settings = self.job.task, self.settings
        return evaluate(self.model, task, dev.read(0, 0), settings=settings, average=self.average)

    def save(self) -> None:
        """Write a checkpoint to go on from, and the log before it."""
        self._log.sync()
        super().save()
