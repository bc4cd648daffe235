"""The loop: steps, evaluations, checkpoints, and an end that is said. On a CPU or GPUs, in one process or several."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
from .moments import own_parts, read_moments, small_state, write_moments
from .optimizing import Optimizer
from .random_state import random_state, seed_all, seed_anew, set_random_state
from .ranks import ALONE, LostError
from .recomputing import recompute
from .run_folder import BEST, MODEL, MOMENTS, RunFolder
from .schedule import lr_factor
from .sharing import shared
from .source import Source, Stream
from .spreading import Spread
from .standing import Standing
from .stepping import take_step
from .stopping import Stop
from .tasks._task import is_higher_better
from .weights import safetensors_bytes, write_whole

__all__ = ["COLLAPSED", "DONE", "LOST", "NONFINITE", "PATIENCE", "Loop", "Observer"]

DONE, PATIENCE, NONFINITE, COLLAPSED, LOST = "done", "patience", "nonfinite", "collapsed", "lost"
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
    written. Of several processes each has one, and all of them take the same way through it; ``lost`` are those that
    ended before the run did.
    """

    def __init__(
        self, job: Job, model: nn.Module | Spread, *, frozen: Collection[str] = (), folder: RunFolder | None = None,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self.spread = model if isinstance(model, Spread) else Spread(model, job.ranks)
        self.job, self.model, self.folder, self.settings = job, self.spread.model, folder, job.settings
        model = self.model
        self.freezing = Freezing(model, job.settings, frozen)
        self.freezing.remember()
        trained = self.freezing.trained()
        if not set(trained) - set(self.freezing.frozen(0)):
            raise ConfigError("everything is frozen: the first step has nothing to train.", hint="See train.freeze.")
        self.optimizer = Optimizer(
            job.settings, self.spread.held(trained), self.freezing.freedoms,
            job.ranks if self.spread.is_sharded else ALONE,
        )  # fmt: skip
        if job.settings.gradient_checkpointing:
            recompute(model)
        self.average = Average(model, job.settings.ema) if job.settings.ema is not None else None
        self.standing = Standing()
        self.stream = Stream(shared(job.work.train, job.ranks), job.settings.seed)
        self.lost: Mapping[int, str] = {}
        self.lineage: Mapping[str, str] = {}
        self._observer = observer or (lambda row: None)
        self._flush_every = 1 if job.device.type == "cpu" else ROWS_ON_GPU
        self._log = Log(None, 0)
        self._pending: list[Pending] = []
        self._told = ""
        self._random: Sequence[Mapping[str, Any] | None] = ()
        self._entered = False
        self._flops: float | None = None
        """Operations for each place of a batch, as counted in the first step."""
        peak = peak_flops(job.settings, job.device)
        self._peak = peak * job.ranks.size if peak is not None else None
        self._compiled = compiled_loss(job)

    def state(self) -> dict[str, Any]:
        """Return everything beside the model that decides how the run goes on; every process has to ask for it."""
        return {
            "version": 1,
            "standing": self.standing.to_json(),
            "position": self.stream.position,
            "optimizer": small_state(self.optimizer) if self.spread.is_sharded else self.optimizer.inner.state_dict(),
            "reached": self.optimizer.reached,
            "flops": self._flops,
            "average": {} if self.average is None or self.spread.is_sharded else dict(self.average.tensors),
            "random": self._generators(),
            "before": self.freezing.before,
            "moved": self.freezing.moved,
            "unsaved": {key: buffer.detach().cpu() for key, buffer in unsaved_of(self.model).items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take the place of a run that was saved; raises FormatError where it is another model's."""
        restore_tensors(self.model, tensors, state.get("unsaved", {}), device=self.job.device)
        self.standing = Standing(**state["standing"])
        self.standing.ended = ""
        self.stream.go_back(tuple(state["position"]))
        optimizer, average = state["optimizer"], state["average"]
        if MOMENTS in state:
            optimizer, average = read_moments(state[MOMENTS], optimizer, self.model, self.optimizer, self.job.ranks)
        elif self.spread.is_sharded:
            optimizer, average = own_parts(optimizer, average, self.model, self.optimizer)
        self.optimizer.inner.load_state_dict(optimizer)
        self.optimizer.reached.copy_(state["reached"])
        self._flops = state["flops"]
        if self.average is not None:
            self.average.load(average)
        self.freezing.before, self.freezing.moved = state["before"], state["moved"]
        self._random = state["random"]

    def run(self, *, until: int | None = None, stop: Stop | None = None, tensorboard: bool = False) -> str:
        """Train to the end, or until ``until`` steps are done; returns why it ended. Raises OutputError."""
        stop, until = stop or Stop(), min(until or self.settings.steps, self.settings.steps)
        self._enter()
        self._log = Log(self.folder, self.standing.step, tensorboard=tensorboard)
        try:
            with self.job.ranks.explaining():
                self.job.ranks.agreed(None)  # here the others wait while the first one checks
                self.standing.ended = self._steps(until, stop)
                self._keep_last()
        except LostError as error:
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
        if self.job.work.dev is None and standing.ended not in (NONFINITE, COLLAPSED) and standing.step:
            self.save_best()

    def _enter(self) -> None:
        """Set the generators, once: what is drawn between making a loop and running it is nothing to the run."""
        if self._entered:
            return
        self._entered = True
        rank, size = self.job.ranks.rank, self.job.ranks.size
        state = self._random[rank] if len(self._random) == size else None
        if state is not None:
            set_random_state(state)
        elif self._random or rank:  # gone on with by other processes, or not the first
            seed_anew(self.settings.seed, self.standing.step, rank)
        else:
            seed_all(self.settings.seed)

    def _generators(self) -> list[dict[str, Any] | None]:
        """Return the states of every process's generators, None where a process took them with it."""
        if self.lost:
            return [random_state() if rank == self.job.ranks.rank else None for rank in range(self.job.ranks.size)]
        return list(self.job.ranks.agreed(random_state()))

    def _steps(self, until: int, stop: Stop) -> str:
        standing, thaws = self.standing, self.freezing.steps()
        self._begin(standing.step)
        began = since = time.perf_counter()
        before = standing.seconds
        ended = standing.waited and standing.waited_for(self.settings.patience)
        why = PATIENCE if ended else ""  # a run that ended, and was resumed
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

    def _heard(self, stop: Stop) -> str:
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

    def _step(self, stop: Stop) -> Pending:
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
        begin = getattr(self.job.work.task, "begin_step", None)
        if begin is not None:
            begin(self.model, standing.step)
        try:
            with Counted() if self._flops is None else nullcontext() as counted:
                stepped = take_step(
                    self.spread, self.job.work.task, batches, self.optimizer, settings=self.settings, fresh=fresh,
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
        takes_part = self.job.ranks.is_first or self.spread.is_sharded
        standing.figures = self.job.ranks.told(self._figures(work.dev) if takes_part else {})
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

    def _figures(self, dev: Source) -> dict[str, float]:
        task, settings = self.job.work.task, self.settings
        return evaluate(self.model, task, dev.read(0, 0), settings=settings, average=self.average)

    @property
    def metric(self) -> str:
        """The figure that says which model is best."""
        return self.job.metric

    def save(self) -> None:
        """Write a checkpoint to go on from."""
        self._log.sync()
        state = self.state()
        if self.spread.is_sharded:
            self._save_parts(state)
        elif self.folder is not None:
            model = safetensors_bytes(tensors_of(self.model))
            self.folder.save(self.standing.step, model, state, keep=self.settings.keep)

    def _save_parts(self, state: dict[str, Any]) -> None:
        """Write a checkpoint together: the weights one after the other, moments by each process its own."""
        folder, ranks = self.folder, self.job.ranks
        with folder.saving(self.standing.step, keep=self.settings.keep) if folder else nullcontext() as staged:
            where = ranks.told(os.path.abspath(staged.path) if staged is not None else "")
            write_whole(os.path.join(where, MODEL) if folder is not None else None, tensors_of(self.model))
            write_moments(os.path.join(where, MOMENTS), self.model, self.optimizer, self.average, ranks)
            ranks.agreed(None)  # all of it is there
            if folder is not None and staged is not None:
                folder.finish(staged, state)

    def save_best(self) -> None:
        """Write the model (its average, where there is one) as the best."""
        if self.folder is None and not self.spread.is_sharded:
            return
        with self.average.in_place() if self.average is not None else nullcontext():
            if self.spread.is_sharded:
                where = self.folder.of(BEST) if self.folder is not None else None
                write_whole(where, tensors_of(self.model), self._metadata())
                return
            data = safetensors_bytes(tensors_of(self.model), self._metadata())
        if self.folder is not None:
            self.folder.write(BEST, data)

    def _metadata(self) -> dict[str, str]:
        figure = {} if self.standing.best is None else {self.metric: repr(self.standing.best)}
        return {**self.lineage, "step": str(self.standing.step), **figure}
