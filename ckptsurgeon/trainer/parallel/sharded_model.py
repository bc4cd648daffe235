"""A model in shards, one on each process (FSDP2), and a task that runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ...destinations.torch_module.parts import own_part
from ...errors import ConfigError
from ...util.text import escape
from ..job.job import Job
from ..tasks._task import Batch, Loss, Task
from .parallel_model import ForwardProxy, ParallelModel
from .ranks import SINGLE_PROCESS, Ranks

__all__ = ["ShardedModel", "build_on_meta", "shard_task", "single_process_job"]


def shard_task(job: Job, spread: ParallelModel) -> Job:
    """Return a job whose task looks at the model through ``spread``, where that is in parts."""
    if not spread.is_sharded:
        return job
    task: Any = _ShardedTask(job.task, spread)
    return replace(job, task=task)


def single_process_job(job: Job) -> Job:
    """Return a job that this process goes on with by itself: its task sees whatever model it is given."""
    task: Any = getattr(job.task, "alone", job.task)
    settings = job.settings if job.ranks.size == 1 else replace(job.settings, compile="off")  # as it was trained
    return replace(job, ranks=SINGLE_PROCESS, settings=settings, task=task)


class _ShardedTask:
    """A task as it is, but that each process puts its part to what is asked of the model."""

    def __init__(self, task: Task, spread: ParallelModel) -> None:
        self.alone, self._spread = task, spread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.alone, name)

    def _of(self, model: nn.Module) -> Task:
        """Return the task, which is asked about the one model alone."""
        assert model is self._spread.model
        return self.alone

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return self._spread(partial(_loss, self._of(model), batch))

    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        return self._spread(partial(_uniform_loss, self._of(model), batch))

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return self._spread(partial(_evaluate, self._of(model), batches))


def _loss(task: Task, batch: Batch, model: nn.Module) -> Loss:
    return task.loss(model, batch)


def _uniform_loss(task: Task, batch: Batch, model: nn.Module) -> float:
    return task.uniform_loss(model, batch)


def _evaluate(task: Task, batches: Iterable[Batch], model: nn.Module) -> dict[str, float]:
    return task.evaluate(model, batches)


T = TypeVar("T")

CHECKED_PASSES = 3
"""Passes in which each layer is agreed on before it is put together, which takes time; later ones are looked at when
they are over. What drops layers by chance does so in these."""

SAME_LAYERS = (
    "A layer is put together by all processes at once, so that they cannot drop or choose layers each for itself: set "
    "layerdrop to 0, or use --strategy ddp."
)


class ShardedModel(ParallelModel):
    """Each process holds a part of every parameter, its gradient and its moments; a layer is whole while it is used.

    ``model`` is one of ``without_weights``; it gets memory for this process's parts, and no values. The members of its
    module lists are put together one after the other, all else of it at once.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(model, ranks)
        if getattr(getattr(model, "config", None), "layerdrop", 0):
            raise ConfigError("--strategy fsdp cannot train a model with LayerDrop.", hint=SAME_LAYERS)
        mesh = init_device_mesh(device.type, (ranks.size,))
        self._used: list[int] = []
        self._passes = self._asked = 0
        self._root: Any = ForwardProxy(model)
        try:
            for number, block in enumerate(_blocks(model)):
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
                # In front of torch's own, which begins to put the layer together.
                block.register_forward_pre_hook(partial(self._note, number), prepend=True)
            fully_shard(self._root, mesh=mesh, reshard_after_forward=True)
        except ValueError as error:
            raise ConfigError(
                f"--strategy fsdp cannot share out this model: {escape(str(error), 300)}.", hint="Use --strategy ddp."
            ) from error
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._root.to_empty(device=device)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        self._held: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part."""
        return True

    def begin(self) -> None:
        """Begin anew with what of the model learns now."""

    def __call__(self, ask: Callable[[nn.Module], T]) -> T:
        """Return what is asked of the model."""
        with warnings.catch_warnings():
            # It says so of each recurrent layer and each view; nothing here changes one in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            found = cast(T, self._root(ask))
        if torch.is_grad_enabled():
            self._agree("end")
            self._passes += 1
        return found

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let gradients be this process's own for a while: they are added up with those that come behind."""
        self._root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._root.set_requires_gradient_sync(True)

    def _note(self, number: int, *_: object) -> None:
        if torch.is_grad_enabled():
            self._used.append(number)
            self._agree(str(number))

    def _agree(self, layer: str) -> None:
        """Raise ConfigError where another process is about to use another layer, before the parts of two are mixed."""
        if self._passes >= CHECKED_PASSES:
            return
        self._asked += 1
        if not self.ranks.same(f"layer/{self._asked}", layer):
            raise _other_layers()

    def held(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return the parts of parameters that an optimiser of this process moves."""
        made = {key: nn.Parameter(own_part(parameter)) for key, parameter in parameters.items()}
        self._held |= {id(parameter): (parameter, made[key]) for key, parameter in parameters.items()}
        return made

    def collect(self) -> None:
        """Give what an optimiser moves its gradients, and all buffers what the first process has in them."""
        used, self._used = tuple(self._used), []
        if any(others != used for others in self.ranks.agreed(used)):
            raise _other_layers()
        self.ranks.follow([buffer for buffer in self.model.buffers() if not buffer.is_meta])
        for parameter, part in self._held.values():
            gradient, parameter.grad = parameter.grad, None
            part.grad = None if gradient is None else own_part(gradient)


def _other_layers() -> ConfigError:
    return ConfigError("the processes use other layers in the same step.", hint=SAME_LAYERS)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of which a model has several in a list, the innermost lists left out."""
    for module in model.children():
        if isinstance(module, nn.ModuleList):
            yield from (block for block in module if next(block.parameters(), None) is not None)
        else:
            yield from _blocks(module)


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose parameters have no memory, and whose buffers hold what the constructor puts there.

    A parameter lives from its making to its place in a module: no more than one of them is there at a time.
    """
    real = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            empty: Tensor = parameter.detach().to("meta")
            parameter = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        real(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[assignment,method-assign]
    try:
        return build()
    finally:
        nn.Module.register_parameter = real  # type: ignore[method-assign]
