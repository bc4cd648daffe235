"""The loop: steps, evaluations, checkpoints, and an end that is said. One process, on a CPU or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from .compiling import compiled_loss
from .device import peak_bytes
from .ema import Average
from .evaluating import evaluate
from .flops import Counted, peak_flops
from .freezing import Freezing
from .job import Job, restore_tensors, tensors_of, unknown_metric, unsaved_of
from .log import Log, Pending, rows_of
from .optimizing import Optimizer
from .random_state import random_state, seed_all, set_random_state
from .recomputing import recompute
from .run_folder import BEST, RunFolder
from .schedule import lr_factor
from .source import Stream
from .standing import Standing
from .stepping import take_step
from .stopping import Stop
from .tasks._task import is_higher_better
from .weights import safetensors_bytes

__all__ = ["COLLAPSED", "DONE", "NONFINITE", "PATIENCE", "Loop", "Observer"]

DONE, PATIENCE, NONFINITE, COLLAPSED = "done", "patience", "nonfinite", "collapsed"
"""How a run may end beside a signal's name."""

COLLAPSED_STEPS = 20
"""Steps in a row of which a task says that nothing more can come, after which a run ends."""

ROWS_ON_GPU = 10
"""Steps whose figures are fetched from a GPU together: each fetch waits for it."""

Observer = Callable[[Mapping[str, Any]], None]
"""Is given each row of the log."""


class Loop:
    """A run under way: model, optimiser, data and where it stands.

    ``frozen`` are keys that are held still beside those that the settings freeze. Without a ``folder`` nothing is
    written.
    """

    def __init__(
        self, job: Job, model: nn.Module, *, frozen: Collection[str] = (), folder: RunFolder | None = None,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self.job, self.model, self.folder, self.settings = job, model, folder, job.settings
        self.freezing = Freezing(model, job.settings, frozen)
        self.freezing.remember()
        trained = self.freezing.trained()
        if not set(trained) - set(self.freezing.frozen(0)):
            raise ConfigError("everything is frozen: the first step has nothing to train.", hint="See train.freeze.")
        self.optimizer = Optimizer(job.settings, trained, self.freezing.freedoms)
        if job.settings.gradient_checkpointing:
            recompute(model)
        self.average = Average(model, job.settings.ema) if job.settings.ema is not None else None
        self.standing = Standing()
        self.stream = Stream(job.work.train, job.settings.seed)
        self.lineage: Mapping[str, str] = {}
        self._observer = observer or (lambda row: None)
        self._flush_every = 1 if job.device.type == "cpu" else ROWS_ON_GPU
        self._log = Log(None, 0)
        self._random: Mapping[str, Any] | None = None
        self._entered = False
        self._flops: float | None = None
        """Operations for each place of a batch, as counted in the first step."""
        self._peak = peak_flops(job.settings, job.device)
        self._compiled = compiled_loss(job)

    def state(self) -> dict[str, Any]:
        """Return everything beside the model that decides how the run goes on."""
        return {
            "version": 1,
            "standing": self.standing.to_json(),
            "position": self.stream.position,
            "optimizer": self.optimizer.inner.state_dict(),
            "reached": self.optimizer.reached,
            "flops": self._flops,
            "average": dict(self.average.tensors) if self.average is not None else {},
            "random": random_state(),
            "before": self.freezing.before,
            "moved": self.freezing.moved,
            "unsaved": {key: buffer.detach().cpu() for key, buffer in unsaved_of(self.model).items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take the place of a run that was saved; raises FormatError where it is another model's."""
        restore_tensors(self.model, tensors, state.get("unsaved", {}), device=self.job.device)
        self.standing = Standing(**state["standing"])
        self.standing.ended = ""
        self.stream = Stream(self.job.work.train, self.settings.seed, tuple(state["position"]))
        self.optimizer.inner.load_state_dict(state["optimizer"])
        self.optimizer.reached.copy_(state["reached"])
        self._flops = state["flops"]
        if self.average is not None:
            self.average.load(state["average"])
        self.freezing.before, self.freezing.moved = state["before"], state["moved"]
        self._random = state["random"]

    def run(self, *, until: int | None = None, stop: Stop | None = None, tensorboard: bool = False) -> str:
        """Train to the end, or until ``until`` steps are done; returns why it ended. Raises OutputError."""
        stop, until = stop or Stop(), min(until or self.settings.steps, self.settings.steps)
        self._enter()
        self._log = Log(self.folder, self.standing.step, tensorboard=tensorboard)
        try:
            self.standing.ended = self._steps(until, stop)
        finally:
            self._log.close()
        return self.standing.ended

    def _enter(self) -> None:
        """Set the generators, once: what is drawn between making a loop and running it is nothing to the run."""
        if self._entered:
            return
        self._entered = True
        if self._random is not None:
            set_random_state(self._random)
        else:
            seed_all(self.settings.seed)

    def _steps(self, until: int, stop: Stop) -> str:
        standing, thaws = self.standing, self.freezing.steps()
        self.freezing.begin(standing.step)
        pending: list[Pending] = []
        began = since = time.perf_counter()
        before = standing.seconds
        ended = standing.waited and standing.waited_for(self.settings.patience)
        why = PATIENCE if ended else ""  # a run that ended, and was resumed
        while standing.step < until and not why:
            if standing.step in thaws:
                self.freezing.begin(standing.step)
            pending.append(self._step())
            now = time.perf_counter()
            standing.seconds = before + now - began
            due = self._due()
            if any(due.values()) or stop.name or len(pending) >= self._flush_every or standing.step == until:
                why = self._note(pending, since)
                pending, since = [], time.perf_counter()
            if not why and due["evaluate"]:
                why = self._evaluate()
                since = time.perf_counter()
            signalled = stop.name  # read once: one that comes while saving is for the next step
            ends = standing.step == until or signalled or why == PATIENCE
            if pending and ends:  # a signal that came since
                why = self._note(pending, since) or why
                pending = []
            if why not in (NONFINITE, COLLAPSED) and (due["save"] or ends):
                self.save()
                since = time.perf_counter()
            why = why or signalled
        return why or (DONE if standing.step >= self.settings.steps else "")

    def _due(self) -> dict[str, bool]:
        step, last = self.standing.step, self.standing.step == self.settings.steps
        return {
            "evaluate": step % self.settings.evaluate_every == 0 or last,
            "save": step % self.settings.save_every == 0 or last,
        }

    def _step(self) -> Pending:
        """Take one step."""
        standing = self.standing
        rates = self.optimizer.rates(lr_factor(self.settings, standing.step))
        batches, fresh = [], 0
        for _ in range(self.settings.accumulate):
            batches.append(next(self.stream))
            fresh += self.stream.position[0] == 0
        measured = (standing.step + 1) % self.settings.evaluate_every == 0 or standing.step + 1 == self.settings.steps
        old = [one.detach().clone() for one in self.optimizer.parameters] if measured else []
        begin = getattr(self.job.work.task, "begin_step", None)
        if begin is not None:
            begin(self.model, standing.step)
        with Counted() if self._flops is None else nullcontext() as counted:
            stepped = take_step(
                self.model, self.job.work.task, batches, self.optimizer, settings=self.settings, fresh=fresh,
                loss_of=self._compiled if counted is None else None,
            )  # fmt: skip
        if counted is not None:
            self._flops = counted.flops / max(stepped.places, 1)
        if measured:
            standing.ratios = self.optimizer.moved_since(old)
        if self.average is not None:
            self.average.update()
        standing.step += 1
        return standing.step, rates, stepped

    def _note(self, pending: list[Pending], since: float) -> str:
        """Write steps to the log; returns NONFINITE or COLLAPSED where too many in a row were of that kind."""
        for row in rows_of(pending, since, flops=self._flops or 0.0, peak=self._peak):
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
        look = getattr(self.job.work.task, "collapsed", None)
        self.standing.collapse = look(row["parts"]) if look is not None else ""
        self.standing.collapsed = self.standing.collapsed + 1 if self.standing.collapse else 0
        return self.standing.collapsed >= COLLAPSED_STEPS

    def _evaluate(self) -> str:
        """Evaluate, keep the best; returns PATIENCE where it has not become better for long."""
        work, standing = self.job.work, self.standing
        if work.dev is None:
            return ""
        standing.figures = evaluate(
            self.model, work.task, work.dev.read(0, 0), settings=self.settings, average=self.average
        )
        self._log.write({"step": standing.step, "dev": standing.figures})
        self._log.flush()
        self._observer({"step": standing.step, "dev": standing.figures})
        name = self.metric
        if name not in standing.figures:
            raise unknown_metric(name, standing.figures)
        value = standing.figures[name]
        if standing.improves(value, higher_is_better=is_higher_better(work.task, name)):
            self.save_best()
        return PATIENCE if standing.waited_for(self.settings.patience) else ""

    @property
    def metric(self) -> str:
        """The figure that says which model is best."""
        return self.job.metric

    def save(self) -> None:
        """Write a checkpoint to go on from."""
        self._log.sync()
        if self.folder is not None:
            model = safetensors_bytes(tensors_of(self.model))
            self.folder.save(self.standing.step, model, self.state(), keep=self.settings.keep)

    def save_best(self) -> None:
        """Write the model (its average, where there is one) as the best."""
        if self.folder is None:
            return
        with self.average.in_place() if self.average is not None else nullcontext():
            data = safetensors_bytes(tensors_of(self.model), self._metadata())
        self.folder.write(BEST, data)

    def _metadata(self) -> dict[str, str]:
        figure = {} if self.standing.best is None else {self.metric: repr(self.standing.best)}
        return {**self.lineage, "step": str(self.standing.step), **figure}
