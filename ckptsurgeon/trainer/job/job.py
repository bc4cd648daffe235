"""A job: the model, the task, the settings and the initial weights of one training run, and the model made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...api.transplant.load_into import load_into
from ...destinations._document import Document
from ...destinations.torch_module.parts import own_part, part_of, whole
from ...errors import ConfigError, FormatError, PlanError
from ...planning.target import TargetSpec
from ...util.text import escape, listing
from ..config.settings import Settings
from ..parallel.forward_proxy import ParallelModel
from ..parallel.ranks import SINGLE_PROCESS, Ranks
from ..system.random_state import preserve_random_state, seed_all
from .init import InitCheckpoint
from .work import Work, build_model

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = [
    "FullTensors",
    "Job",
    "initial_values",
    "initialise",
    "restore_tensors",
    "state_tensors",
    "unknown_metric_error",
    "unsaved_buffers",
]


@dataclass(frozen=True)
class Job:
    """What is trained, on what and how. ``init`` None: from the declared initialiser.

    ``ranks`` are the processes that train it, by a ``strategy``: ``ddp``, where each has the model, or ``fsdp``, where
    each has a part of it.
    """

    document: Document
    settings: Settings
    target: TargetSpec
    work: Work
    device: torch.device
    init: InitCheckpoint | None = None
    ranks: Ranks = SINGLE_PROCESS
    strategy: str = "ddp"

    @property
    def metric(self) -> str:
        """The figure that says which model is best."""
        return self.settings.metric or self.work.task.metric

    def empty_model(self) -> nn.Module:
        """Build the model; what its tensors hold is the constructor's. Raises ConfigError where nobody can build it."""
        with preserve_random_state():
            seed_all(self.settings.seed)
            return build_model(self.target, self.document)

    def model(self) -> tuple[nn.Module, Plan | None]:
        """Return the model with its initial values, and the plan by which the init was loaded.

        Raises what ``load_into`` raises: an init that does not fit is an error before the first step.
        """
        model, plan = self.empty_model(), None
        if self.init is None:
            initialise(model, self.target, self.target.tensors, self.settings.seed)
        else:
            plan = self._load(model, self.init.path)
        return model.to(self.device), plan

    @property
    def is_sharded(self) -> bool:
        """Whether no process has all of the model."""
        return self.strategy == "fsdp" and self.ranks.size > 1

    def spread(self) -> tuple[ParallelModel, Plan | None]:
        """Return the model with its initial values as its processes hold it, and the plan by which it was loaded.

        Where each holds a part, it reads no more of the init, and no one ever has all of it.
        """
        if not self.is_sharded:
            model, plan = self.model()
            return ParallelModel(model, self.ranks), plan
        spread = self.empty_spread()
        if self.init is not None:
            return spread, self._load(spread.model, self.init.path)
        initialise(spread.model, self.target, self.target.tensors, self.settings.seed)
        return spread, None

    def empty_spread(self) -> ParallelModel:
        """Return the model as its processes hold it, with whatever values."""
        if not self.is_sharded:
            return ParallelModel(self.empty_model().to(self.device), self.ranks)
        from ..parallel.sharding import ShardedModel, build_on_meta

        with preserve_random_state():
            seed_all(self.settings.seed)
            model = build_on_meta(lambda: build_model(self.target, self.document))
        return ShardedModel(model, self.ranks, self.device)

    def _load(self, model: nn.Module, path: str) -> Plan:
        """Load the init whole; what does not fit is for ``ckpt transplant`` to fit, whose flags there are not here."""
        try:
            return load_into(model, path, strict=True, on_missing="error")
        except PlanError as error:
            raise PlanError(
                f"{escape(path)} does not fit {escape(self.document.name)}: {error.message}",
                hint=f"ckpt transplant {escape(path)} {escape(self.document.path)} makes an init that fits.",
                details=error.details,
                rule=error.rule,
            ) from error


def unknown_metric_error(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a metric that the task does not give."""
    return ConfigError(
        f"train.metric {escape(name)}: the task gives no such figure.", hint=f"It gives {escape(', '.join(known))}."
    )


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict themselves, by key."""
    return {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


class FullTensors(Mapping[str, Tensor]):
    """Tensors by key, each whole while it is looked at: of those held in parts, all processes look at each in turn."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return whole(self._tensors[key]).detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that no state dict has (``persistent=False``): a model may count or cache in them."""
    saved = model.state_dict(keep_vars=True).keys()
    return {key: buffer for key, buffer in model.named_buffers() if key not in saved}


@torch.no_grad()
def restore_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], unsaved: Mapping[str, Tensor], *, device: torch.device
) -> None:
    """Give a model the tensors and the buffers of one that was saved; raises FormatError where it is another model."""
    own = state_tensors(model)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in tensors.items()}:
        other = sorted(own.keys() ^ tensors.keys())
        raise FormatError(f"the checkpoint is of another model: {listing(other, where='')}.", details=other)
    for key, value in own.items():
        own_part(value).copy_(part_of(tensors[key], value))
    for key, buffer in unsaved.items():
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, buffer.to(device))


@torch.no_grad()
def initialise(
    model: nn.Module, target: TargetSpec, keys: Iterable[str], seed: int, *, parts: Mapping[str, Tensor] | None = None
) -> None:
    """Give tensors the values that ``ckpt transplant --seed`` would draw; ``parts`` get them where they are true."""
    tensors, parts = state_tensors(model), parts or {}
    for key, value in initial_values(target, [*keys, *parts], seed):
        if key in parts:
            value = torch.where(parts[key], value, tensors[key])
        own_part(tensors[key]).copy_(part_of(value, tensors[key]))


def initial_values(target: TargetSpec, keys: Iterable[str], seed: int) -> Iterable[tuple[str, Tensor]]:
    """Yield each key with the values that its declared initialiser draws."""
    wanted = [key for key in keys if target.tensors[key].numel]
    for key, data in target.initial(wanted, seed):
        info = target.tensors[key]
        yield key, torch.frombuffer(data, dtype=getattr(torch, info.dtype)).reshape(info.shape)
