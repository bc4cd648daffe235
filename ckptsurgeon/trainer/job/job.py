"""A job: everything that a training run needs; the model is built from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...api.transplant.load_into import load_every_tensor
from ...checkpoint.opening import open_checkpoint
from ...destinations._document import Document
from ...errors import ConfigError, PlanError
from ...planning.target import TargetSpec
from ...util.text import escape
from ..config.settings import Settings
from ..data.loader import Batches
from ..data.source import BatchSource
from ..parallel.ranks import SINGLE_PROCESS, ParallelModel, Ranks
from ..state.model_tensors import initial_values, initialise
from ..system.long_convolution import use_matrix_products
from ..system.random_state import preserve_random_state, seed_all
from ..system.recurrent import keep_recurrent_in_float32
from ..tasks._task import Task
from .fitting_init import command_that_fits
from .init_checkpoint import InitCheckpoint

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = ["Job", "build_model", "new_part_mask", "new_part_masks", "unknown_metric_error"]


@dataclass(frozen=True)
class Job:
    """The model, the task with its splits, the settings and the initial weights of one training run.

    ``dev`` is the split for evaluations during the training, ``test`` the split for an evaluation at the end; each may
    be None. ``tokens`` is the token list, empty if there is none. ``init`` is the checkpoint of the initial weights; if
    it is None, the model's initialisers make all weights. ``ranks`` are the processes that train. With the ``strategy``
    ``ddp``, each process has the whole model; with ``fsdp``, each has a shard of the model.
    """

    document: Document
    settings: Settings
    target: TargetSpec
    device: torch.device
    task: Task
    train: BatchSource
    dev: BatchSource | None = None
    test: BatchSource | None = None
    notes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    init: InitCheckpoint | None = None
    ranks: Ranks = SINGLE_PROCESS
    strategy: str = "ddp"

    def close(self) -> None:
        """End the worker processes of the data loaders."""
        for source in (self.train, self.dev, self.test):
            if isinstance(source, Batches):
                source.close()

    @property
    def metric(self) -> str:
        """The name of the metric that decides which model is best."""
        return self.settings.metric or self.task.metric

    def empty_model(self) -> nn.Module:
        """Return a new model with the values that its constructor sets; raises ConfigError if it cannot be built."""
        with preserve_random_state():
            seed_all(self.settings.seed)
            return self._build()

    def model(self) -> tuple[nn.Module, Plan | None]:
        """Return a new model with its initial values, and the plan by which the checkpoint ``init`` was loaded.

        The plan is None if the job has no ``init``. Raises the errors of ``load_every_tensor``, such as PlanError if
        ``init`` does not fit the model.
        """
        model, plan = self.empty_model(), None
        if self.init is None:
            initialise(model, self.target, self.target.tensors, self.settings.seed)
        else:
            plan = self._load(model, self.init.path)
        return model.to(self.device), plan

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of the model."""
        return self.strategy == "fsdp" and self.ranks.size > 1

    @property
    def may_compile(self) -> bool:
        """Whether torch.compile may be used: with ``compile: on``, or on a GPU with ``compile: auto``."""
        return self.settings.compile == "on" or (self.settings.compile == "auto" and self.device.type == "cuda")

    @property
    def lengths_vary(self) -> bool:
        """Whether the inputs of different batches may have different lengths."""
        return not isinstance(self.train, Batches) or len(set(self.train.split.lengths)) != 1

    def parallel_model(self) -> tuple[ParallelModel, Plan | None]:
        """Return the model that all ranks train, with its initial values, and the plan for loading ``init``.

        The plan is None if the job has no ``init``. With ``fsdp``, each rank reads only its shards of the initial
        weights; no rank ever holds the whole model.
        """
        if not self.is_sharded:
            model, plan = self.model()
            return ParallelModel(model, self.ranks), plan
        sharded = self.empty_parallel_model()
        if self.init is not None:
            return sharded, self._load(sharded.module, self.init.path)
        initialise(sharded.module, self.target, self.target.tensors, self.settings.seed)
        return sharded, None

    def empty_parallel_model(self) -> ParallelModel:
        """Return the model that all ranks train, with arbitrary values; the caller loads a checkpoint into it."""
        if not self.is_sharded:
            return ParallelModel(self.empty_model().to(self.device), self.ranks)
        from ...destinations.torch_module.meta import build_on_meta
        from ..parallel.sharded_model import ShardedModel

        with preserve_random_state():
            seed_all(self.settings.seed)
            model = build_on_meta(self._build)
        return ShardedModel(model, self.ranks, self.device, bf16=self.settings.precision == "bf16")

    def _build(self) -> nn.Module:
        model = build_model(self.target, self.document)
        if self.device.type == "cuda":
            model = use_matrix_products(model)
        return keep_recurrent_in_float32(model) if self.settings.precision == "bf16" else model

    def _load(self, model: nn.Module, path: str) -> Plan:
        """Load the initial weights at ``path`` into the model, and return the plan by which they were loaded.

        Raises PlanError if the weights do not fit the model; the hint has the command that makes fitting weights.
        """
        try:
            return load_every_tensor(model, path)
        except PlanError as error:
            raise PlanError(
                f"{escape(path)} does not fit {escape(self.document.name)}: {error.message}",
                hint=command_that_fits(self.init, self.document.path, self.target) if self.init is not None else "",
                details=error.details,
                rule=error.rule,
            ) from error


def unknown_metric_error(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a metric ``name`` that is not in ``known``, the names of the metrics that a task returns."""
    return ConfigError(
        f"train.metric {escape(name)}: the task does not return this metric.",
        hint=f"The task returns {escape(', '.join(known))}.",
    )


def build_model(target: TargetSpec, document: Document) -> nn.Module:
    """Return a new model with the values that its constructor sets; raises ConfigError if it cannot be built."""
    if target.build is None:
        raise ConfigError(
            f"{escape(document.name)} describes only tensors, and not a model that can be trained.",
            hint="Under model, give the class as _target_, or a model of transformers, ESPnet or SpeechBrain.",
        )
    model = target.build()
    assert isinstance(model, nn.Module)
    return model


SAVED_AS = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes in which an init may be saved; the values that initialisers drew are then rounded to this dtype."""


def new_part_masks(job: Job, plan: Plan | None) -> dict[str, Tensor]:
    """Return {key: mask} for all tensors that have only a part of their values from sources.

    The mask is true for new values, which came from an initialiser. ``plan`` is the plan by which the job's initial
    weights were loaded. The dict is empty if the job has no initial weights.
    """
    if job.init is None or plan is None:
        return {}
    keys = [key for key, info in job.target.tensors.items() if key in job.init.partly and info.numel]
    source_keys = {step.key: step.source_key for step in plan.steps}
    parts = {}
    with open_checkpoint(job.init.path) as opened:
        checkpoint = opened.unwrapped(destination=list(job.target.tensors))
        for key, own in initial_values(job.target, keys, job.init.seed or 0):
            value = checkpoint.tensor(source_keys[key]).to(own.dtype).reshape(own.shape)
            parts[key] = new_part_mask(job.init, key, value, own)
    return parts


def new_part_mask(init: InitCheckpoint, key: str, value: Tensor, own: Tensor) -> Tensor:
    """Return a mask of a tensor's shape that is true for the values that came from an initialiser, not from a source.

    If a vocabulary was mapped, the recipe of ``init`` lists the new rows. Otherwise the values of the source are a
    block that begins at index 0 of each axis, and all values outside of the block are new. To find the block, this
    function compares two tensors: ``value`` is the tensor ``key`` in ``init``; ``own`` is drawn by the initialiser of
    this tensor, with the seed of the recipe.
    """
    assert init.recipe is not None
    made, rows = init.recipe.tensors[key], init.recipe.rows
    if made.op == "map":
        fresh = [place for place, row in enumerate(rows.rows) if row is None] if rows is not None and rows.draws else []
        drawn = torch.zeros(value.shape, dtype=torch.bool)
        return drawn.index_fill_(made.axis, torch.tensor(fresh, dtype=torch.int64), True)
    foreign = torch.ones(value.shape, dtype=torch.bool)
    for dtype in SAVED_AS if value.is_floating_point() else ():
        foreign &= value != own.to(dtype).to(value.dtype)
    foreign &= value != own
    drawn = torch.ones(value.shape, dtype=torch.bool)
    if foreign.any():
        drawn[tuple(slice(0, int(along.max()) + 1) for along in foreign.nonzero(as_tuple=True))] = False
    return drawn
