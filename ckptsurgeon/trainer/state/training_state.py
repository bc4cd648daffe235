"""A run under way: model, optimiser, data and where it stands, and how that is saved and taken up again."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError
from ..data.source import BatchStream, share_batches
from ..folder.run_folder import BEST, MODEL, MOMENTS, RunFolder
from ..job.job import Job
from ..parallel.parallel_model import ParallelModel
from ..parallel.ranks import SINGLE_PROCESS
from ..system.gradient_checkpointing import enable_gradient_checkpointing
from ..system.random_state import random_state, seed_all, seed_from, set_random_state
from .ema import EMA
from .freezing import FreezeSchedule
from .model_tensors import restore_tensors, safetensors_bytes, state_tensors, unsaved_buffers, write_safetensors
from .optimizer import Optimizer
from .run_progress import RunProgress
from .sharded_state import load_moments, save_moments, shard_state, state_without_moments

__all__ = ["TrainingState"]


class TrainingState:
    """Everything that decides how a run goes on.

    ``frozen`` are keys that are held still beside those that the settings freeze. Without a ``folder`` nothing is
    written. Of several processes each has one; ``lost`` are those that ended before the run did.
    """

    def __init__(
        self, job: Job, model: nn.Module | ParallelModel, *, frozen: Collection[str] = (), folder: RunFolder | None = None
    ) -> None:  # fmt: skip
        self.spread = model if isinstance(model, ParallelModel) else ParallelModel(model, job.ranks)
        self.job, self.model, self.folder, self.settings = job, self.spread.model, folder, job.settings
        model = self.model
        self.freezing = FreezeSchedule(model, job.settings, frozen)
        self.freezing.remember()
        trained = self.freezing.trained()
        if not set(trained) - set(self.freezing.frozen(0)):
            raise ConfigError("everything is frozen: the first step has nothing to train.", hint="See train.freeze.")
        self.optimizer = Optimizer(
            job.settings, self.spread.held(trained), self.freezing.freedoms,
            job.ranks if self.spread.is_sharded else SINGLE_PROCESS,
        )  # fmt: skip
        if job.settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.average = EMA(model, job.settings.ema) if job.settings.ema is not None else None
        self.standing = RunProgress()
        self.stream = BatchStream(share_batches(job.train, job.ranks), job.settings.seed)
        self.lost: Mapping[int, str] = {}
        self.lineage: Mapping[str, str] = {}
        self._random: Sequence[Mapping[str, Any] | None] = ()
        self._entered = False
        self._flops: float | None = None
        """Operations for each place of a batch, as counted in the first step."""

    @property
    def metric(self) -> str:
        """The figure that says which model is best."""
        return self.job.metric

    def state(self) -> dict[str, Any]:
        """Return everything beside the model that decides how the run goes on; every process has to ask for it."""
        return {
            "version": 1,
            "in_parts": self.spread.is_sharded,
            "standing": self.standing.to_json(),
            "position": self.stream.position,
            "optimizer": state_without_moments(self.optimizer)
            if self.spread.is_sharded
            else self.optimizer.inner.state_dict(),
            "reached": self.optimizer.reached,
            "flops": self._flops,
            "average": {} if self.average is None or self.spread.is_sharded else dict(self.average.tensors),
            "random": self._generators(),
            "before": self.freezing.before,
            "moved": self.freezing.moved,
            "unsaved": {key: buffer.detach().cpu() for key, buffer in unsaved_buffers(self.model).items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take the place of a run that was saved; raises FormatError where it is another model's."""
        restore_tensors(self.model, tensors, state.get("unsaved", {}), device=self.job.device)
        self.standing = RunProgress(**state["standing"])
        self.standing.ended = ""
        self.stream.go_back(tuple(state["position"]))
        optimizer, average = state["optimizer"], state["average"]
        if MOMENTS in state:
            optimizer, average = load_moments(state[MOMENTS], optimizer, self.model, self.optimizer, self.job.ranks)
        elif self.spread.is_sharded:
            optimizer, average = shard_state(optimizer, average, self.model, self.optimizer)
        self.optimizer.inner.load_state_dict(optimizer)
        self.optimizer.reached.copy_(state["reached"])
        self._flops = state["flops"]
        if self.average is not None:
            self.average.load(average)
        self.freezing.before, self.freezing.moved = state["before"], state["moved"]
        self._random = state["random"]

    def _generators(self) -> list[dict[str, Any] | None]:
        """Return the states of every process's generators, None where a process took them with it."""
        if self.lost:
            return [random_state() if rank == self.job.ranks.rank else None for rank in range(self.job.ranks.size)]
        return list(self.job.ranks.agreed(random_state()))

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
            seed_from(self.settings.seed, self.standing.step, rank)
        else:
            seed_all(self.settings.seed)

    def save(self) -> None:
        """Write a checkpoint to go on from."""
        state = self.state()
        if self.spread.is_sharded:
            self._save_parts(state)
        elif self.folder is not None:
            model = safetensors_bytes(state_tensors(self.model))
            self.folder.save(self.standing.step, model, state, keep=self.settings.keep)

    def _save_parts(self, state: dict[str, Any]) -> None:
        """Write a checkpoint together: the weights one after the other, moments by each process its own."""
        folder, ranks = self.folder, self.job.ranks
        with folder.saving(self.standing.step, keep=self.settings.keep) if folder else nullcontext() as staged:
            where = ranks.told(os.path.abspath(staged.path) if staged is not None else "")
            write_safetensors(os.path.join(where, MODEL) if folder is not None else None, state_tensors(self.model))
            save_moments(os.path.join(where, MOMENTS), self.model, self.optimizer, self.average, ranks)
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
                write_safetensors(where, state_tensors(self.model), self._metadata())
                return
            data = safetensors_bytes(state_tensors(self.model), self._metadata())
        if self.folder is not None:
            self.folder.write(BEST, data)

    def _metadata(self) -> dict[str, str]:
        figure = {} if self.standing.best is None else {self.metric: repr(self.standing.best)}
        return {**self.lineage, "step": str(self.standing.step), **figure}
