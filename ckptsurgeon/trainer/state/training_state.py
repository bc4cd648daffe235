"""The state of a run: model, optimizer, moving average, data stream and progress; restored bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError
from ..data.source import BatchStream, share_batches
from ..folder.run_folder import MOMENTS
from ..job.job import Job
from ..parallel.parallel_model import ParallelModel
from ..parallel.ranks import SINGLE_PROCESS
from ..system.gradient_checkpointing import enable_gradient_checkpointing
from ..system.random_state import random_state, seed_all, seed_from, set_random_state
from .ema import EMA
from .freezing import FreezeSchedule
from .lora import add_adapters
from .model_tensors import own_numbers, restore_numbers, restore_tensors, unsaved_buffers
from .optimizer import Optimizer
from .run_progress import RunProgress
from .sharded_state import load_moments, shard_state, state_without_moments
from .source_moments import keep_moments

__all__ = ["TrainingState"]


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
            "standing": self.progress.to_json(),
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
