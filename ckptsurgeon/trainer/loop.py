"""The training loop, from a batch to a saved checkpoint.

``TrainingLoop.run`` calls ``_train``, which takes step after step. For each step, ``_step`` gets the batches, and
``gradient_step`` does forward, backward, all-reduce, clipping and the optimizer step. Then come the moving average,
log, evaluation and checkpoint. Each of several processes runs this code, and all or none reach a collective call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from .config.settings import Settings
from .evaluation import evaluate_shared, try_longest_batch
from .folder.run_folder import RunFolder
from .job.job import Job, unknown_metric_error
from .log import Observer, PendingStep, StepCounts, StepResult, TrainingLog, evaluation_row, log_rows
from .parallel.lost_ranks import LostRanksError
from .parallel.ranks import ParallelModel
from .state.checkpointing import CheckpointWriter
from .state.model_tensors import BufferSnapshot
from .state.optimizer import Optimizer, lr_factor
from .state.training_state import COLLAPSED, DONE, LOST, NONFINITE, PATIENCE, TrainingState, anneal
from .system.compiling import LossFunction, compiled_loss
from .system.device import autocast, explain_nondeterminism, out_of_memory_error, peak_bytes
from .system.flops import FlopCounter, peak_flops
from .system.random_state import random_state, set_random_state
from .system.signals import StopSignal
from .tasks._task import Batch, Loss, LossSums, Task, begin_step, explain_task_errors, is_higher_better, places

__all__ = ["TrainingLoop", "gradient_step"]

COLLAPSED_STEPS = 20
"""A run ends after this many steps in a row for which the task's method ``collapsed`` returns a reason."""

ROWS_ON_GPU = 10
"""The number of log rows that are fetched from a GPU together; a fetch waits until all queued work is done."""


class TrainingLoop:
    """Trains a job; ``observer`` gets each row of the log. ``stopped`` names the signal that ended training, or ''."""

    def __init__(
        self, job: Job, model: nn.Module | ParallelModel, *, frozen: Collection[str] = (),
        folder: RunFolder | None = None, observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self.job, self.settings, self.folder = job, job.settings, folder
        self.state = TrainingState(job, model, frozen=frozen)
        self.checkpoints = CheckpointWriter(self.state, folder)
        self.stopped = ""
        self._observer = observer or (lambda row: None)
        self._log = TrainingLog(None, 0)
        self._rows_per_fetch = 1 if job.device.type == "cpu" else ROWS_ON_GPU
        self._pending: list[PendingStep] = []
        self._signal_of_step = ""
        self._compiled_loss = compiled_loss(job, self.state.model) if job.may_compile else None
        peak = peak_flops(job.settings, job.device)
        self._peak_flops = peak * job.ranks.size if peak is not None else None

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.state.model

    def run(self, *, until: int | None = None, stop: StopSignal | None = None) -> str:
        """Train to the last step, or until ``until`` steps are done; return why the run ended. Raises OutputError."""
        state, ranks = self.state, self.job.ranks
        stop, until = stop or StopSignal(), min(until or self.settings.steps, self.settings.steps)
        state.seed_generators()
        self._log = TrainingLog(self.folder, state.progress.step)
        try:
            with self.checkpoints, ranks.detect_lost(), ranks.watched():
                ranks.barrier()  # the other ranks wait here while rank 0 runs the checks before the first step
                state.progress.ended = self._train(until, stop)
                if self.job.dev is None and state.progress.ended not in (NONFINITE, COLLAPSED) and state.progress.step:
                    self.checkpoints.save_best()  # nothing is evaluated, so the last model is the best
                if ranks.size > 1:  # after the last step, too, all ranks must agree on a signal
                    self.stopped = stop.name = next(filter(None, ranks.all_gather(stop.name)), "")
        except torch.OutOfMemoryError as error:
            is_whole = ranks.settle_device()
            torch.cuda.empty_cache()
            if not (is_whole and self._save_alone()) or not ranks.is_main:
                raise
            raise out_of_memory_error(self.settings, state.progress.step) from error
        except LostRanksError as error:
            state.lost_ranks, state.progress.ended = error.ranks, LOST
            if error.is_whole:
                self._save_alone()
        finally:
            self._log.close()
        return state.progress.ended

    def _train(self, until: int, stop: StopSignal) -> str:
        """Train until the run ends or ``until`` steps are done; return why the run ended, or '' if it has not ended."""
        state, progress, settings = self.state, self.state.progress, self.settings
        state.apply_freezing()
        if progress.step < until:
            try_longest_batch(state)
        unfreeze_steps = state.freezing.unfreeze_steps()
        seconds_before, began = progress.seconds, time.perf_counter()
        since = began  # pending steps share the time from then on
        end = PATIENCE if progress.waited and progress.waited_for(settings.patience) else ""  # the saved run had ended
        if progress.evaluated < progress.step and self._is_due(settings.evaluate_every):
            end = end or self._evaluate()  # the run was killed after this step, before its evaluation

        while progress.step < until and not end:
            if progress.step in unfreeze_steps:
                state.apply_freezing()
            self._pending.append(self._step(stop))
            progress.seconds = seconds_before + time.perf_counter() - began

            # Log. On a GPU several rows are fetched together. All are written before an evaluation, a save and the end.
            evaluates, saves = self._is_due(settings.evaluate_every), self._is_due(settings.save_every)
            is_fetched = len(self._pending) >= self._rows_per_fetch or progress.step == until
            if evaluates or saves or is_fetched or self._signal(stop):
                end = self._write_rows(since)
                since = time.perf_counter()
            if evaluates and not end:
                end = self._evaluate()
                since = time.perf_counter()

            # Save. The signal is read once: if it arrives while a checkpoint is written, the next step is the last.
            signal = self._signal(stop)
            is_last = progress.step == until or bool(signal) or end == PATIENCE
            if is_last:
                end = self._write_rows(since) or end
            # Weights that are not finite, or that have collapsed, must not replace the last good checkpoint.
            if (saves or is_last) and end not in (NONFINITE, COLLAPSED):
                self.save()
                since = time.perf_counter()
            end = end or signal
        return end or (DONE if progress.step >= settings.steps else "")

    def _step(self, stop: StopSignal) -> PendingStep:
        """Take one step, and return it for the log. If it raises an error, the state before the step is restored."""
        state, task, settings, step = self.state, self.job.task, self.settings, self.state.progress.step
        position, generators = state.stream.position, random_state() if self.job.ranks.size > 1 else None
        rates = state.optimizer.set_learning_rates(lr_factor(settings, step) * state.progress.lr_scale)
        batches: list[Batch] = []
        unseen = 0
        for _ in range(settings.accumulate):
            batches.append(next(state.stream))
            unseen += state.stream.position[0] == 0  # in the first epoch the run sees every clip for the first time
        measures_updates = (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps
        weights = [one.detach().clone() for one in state.optimizer.parameters] if measures_updates else []
        begin_step(task, state.model, step)
        # Operations are counted in the first step. It is not compiled, because the counter cannot see compiled code.
        counts_flops = state.flops_per_place is None
        try:
            with (
                explain_task_errors(settings.task, there=True),
                explain_nondeterminism(settings),
                FlopCounter() if counts_flops else nullcontext() as flops,
            ):
                result = gradient_step(
                    state.parallel, task, batches, state.optimizer, settings=settings, unseen=unseen,
                    signal=lambda: stop.name, loss_function=None if counts_flops else self._compiled_loss,
                )  # fmt: skip
        except Exception:
            state.stream.seek(position)
            if generators is not None:
                set_random_state(generators)
            raise
        if flops is not None:
            state.flops_per_place = flops.flops / max(result.own_places, 1)
        if measures_updates:
            state.progress.ratios = state.optimizer.update_ratios(weights)
        if state.ema is not None:
            state.ema.update()
        state.progress.step += 1
        self._signal_of_step = result.counts.signal
        return state.progress.step, rates, result

    def _signal(self, stop: StopSignal) -> str:
        """Return the name of the signal that ends the run; '' if there is none, or if not all ranks know about it yet.

        If a rank stopped as soon as it received a signal, the other ranks would wait for this rank for ever.
        """
        if self.job.ranks.size > 1:
            stop.name = self._signal_of_step or stop.name
            return self._signal_of_step
        return stop.name

    def _is_due(self, every: int) -> bool:
        step = self.state.progress.step
        return step > 0 and (step % every == 0 or step == self.settings.steps)

    def _write_rows(self, since: float) -> str:
        """Write the pending steps to the log; return NONFINITE or COLLAPSED if one of them ends the run, else ''."""
        progress, collapsed = self.state.progress, getattr(self.job.task, "collapsed", None)
        pending, self._pending = self._pending, []
        rows = log_rows(pending, since, flops=self.state.flops_per_place or 0.0, peak=self._peak_flops)
        self.job.ranks.confirm_device_work()
        for row in rows:
            row["peak_bytes"] = peak_bytes(self.job.device)
            row["seconds"] = progress.seconds
            progress.count(row, self.settings.clip)
            self._log.write(row)
            self._observer(row)
            if progress.in_a_row > self.settings.nonfinite:
                return NONFINITE
            progress.collapse = collapsed(row["parts"]) if collapsed is not None else ""
            progress.collapsed = progress.collapsed + 1 if progress.collapse else 0
            if progress.collapsed >= COLLAPSED_STEPS:
                return COLLAPSED
        return ""

    def _evaluate(self) -> str:
        """Evaluate on ``dev``, and save the best model; return PATIENCE if ``train.patience`` ends the run, else ''."""
        job, state, progress = self.job, self.state, self.state.progress
        if job.dev is None:
            return ""
        found = evaluate_shared(state.parallel, job.task, job.dev, settings=self.settings, average=state.ema)
        progress.figures, progress.evaluated = found.figures, progress.step
        value, higher = progress.figures.get(job.metric), is_higher_better(job.task, job.metric)
        is_lowered = value is not None and anneal(self.settings, progress, value, higher_is_better=higher)
        row = evaluation_row(progress, is_lowered=is_lowered)
        self._log.write(row)
        self._log.flush()
        self._observer(row)
        if value is None:
            raise unknown_metric_error(job.metric, progress.figures)
        if progress.improves(value, higher_is_better=higher):
            self.checkpoints.save_best(found.rows)
        return PATIENCE if progress.waited_for(self.settings.patience) else ""

    def _save_alone(self) -> bool:
        """Write the log and a checkpoint without the other ranks; return whether a checkpoint could be written."""
        self._write_rows(time.perf_counter())
        self._log.sync()
        return self.checkpoints.save_alone()

    def save(self) -> None:
        """Save a checkpoint to resume from, after syncing the log: a resumed run needs all rows up to its step."""
        self._log.sync()
        self.checkpoints.save()


def gradient_step(
    model: ParallelModel, task: Task, batches: Sequence[Batch], optimizer: Optimizer, *, settings: Settings,
    unseen: int = 0, signal: Callable[[], str] = str, loss_function: LossFunction | None = None,
) -> StepResult:  # fmt: skip
    """Take one optimizer step on the batches of all ranks; the result is as for one large batch in one process.

    ``batches`` are this rank's batches. The first ``unseen`` of them have clips that the run has not seen before.
    ``signal`` returns the name of the signal that this rank received, or ''. ``loss_function`` is the task's compiled
    loss (None: ``task.loss``). If an error is raised, parameters and buffers are unchanged. No value is read from a
    GPU, because such a read waits for all queued work.
    """
    device = next(model.module.parameters()).device
    buffers, sums = BufferSnapshot(model.module), LossSums(device)
    try:
        for number, batch in enumerate(batches):
            is_last = number + 1 == len(batches)
            # The gradients of all ranks are summed once, in the backward pass of the last batch.
            with nullcontext() if is_last else model.no_sync():
                with autocast(settings, device):
                    total, loss = model(partial(_forward, loss_function or task.loss, batch.to(device)))
                sums.add(loss, unseen=number < unseen)
                if is_last:  # detects dead ranks on the CPU; a sum on the GPU would wait for them
                    counts = StepCounts.of_all(model.ranks, batches, unseen, signal(), sums.parts)
                    model.ranks.begin_device_work()
                total.backward()  # type: ignore[no-untyped-call]
        items = sums.item_count()
        model.ranks.all_reduce([sums.total, items, *sums.parts.values(), *sums.too_short])
        model.finish_backward()
    except BaseException:
        buffers.restore_if(torch.ones((), dtype=torch.bool))
        model.module.zero_grad(set_to_none=True)
        raise
    # The mean over all items of all batches and ranks. In a mean of the batches' means, the labels of a batch with few
    # labels would weigh too much (https://github.com/huggingface/transformers/issues/34191).
    scale = 1 / items.clamp(min=1)
    norms = optimizer.gradient_norms()
    grad_norm = optimizer.scale_gradients(norms, scale * model.gradient_scale, settings.clip)
    # A step that is not finite is skipped on the device: the fused optimizer gets a flag, and no value is fetched.
    is_skipped = ~(torch.isfinite(grad_norm) & torch.isfinite(sums.total))
    optimizer.step(is_skipped, norms)
    buffers.restore_if(is_skipped)
    return StepResult(
        loss=sums.total * scale, parts={name: part * scale for name, part in sums.parts.items()}, grad_norm=grad_norm,
        is_skipped=is_skipped, counts=counts, too_short=sums.too_short[0] if sums.too_short else None,
        own_places=places(batches)[1] or sum(len(batch.names) for batch in batches),
    )  # fmt: skip


def _forward(loss_function: LossFunction, batch: Batch, model: nn.Module) -> tuple[Tensor, Loss]:
    """Return the total loss, from which DDP starts the backward pass, and the loss without its autograd graph."""
    loss = loss_function(model, batch)
    return loss.without_effect() if batch.idle else (loss.total, loss.detached())
