"""A model that is trained by one process, or by several that sum their gradients (DistributedDataParallel, DDP)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

from torch import nn

from .ranks import SINGLE_PROCESS, Ranks

__all__ = ["ForwardProxy", "ParallelModel"]

T = TypeVar("T")


class ParallelModel:
    """A model (``module``) that is trained by one process, or by several processes with DDP.

    To run the model, call this object with a function that takes ``module``: only then does DDP notice the forward
    pass. https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
    """

    def __init__(self, module: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.module, self.ranks = module, ranks
        self._wrapped: Any = None

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of the model."""
        return False

    @property
    def gradient_scale(self) -> int:
        """The factor by which gradients are multiplied to be sums over the ranks, because DDP computes means."""
        return self.ranks.size

    def wrap(self) -> None:
        """Wrap the module in DDP for the parameters that now require gradients; every rank must call this.

        It must be called before the first step, and whenever other parameters are trained.
        """
        if self.ranks.size == 1:
            return
        from torch.nn.parallel import DistributedDataParallel

        self._wrapped = None  # the old wrapper's gradient hooks must be gone before the new one adds its own
        self.ranks.barrier()  # detects dead ranks; DDP begins with sums on the GPUs, which would wait for them
        self.ranks.begin_device_work()
        # find_unused_parameters, because a model may drop layers and a task may switch losses, in any step: the first
        # steps do not show it, and without the search DDP would then leave gradients unsummed. A step that uses all
        # parameters pays for a search of its graph (0.1 ms on a CPU for 212 parameters in 12 layers) and for one small
        # sum. A step that leaves parameters out waits for the GPU.
        taken = inspect.signature(DistributedDataParallel.__init__).parameters
        new = "forward_sync_buffers"  # the option's name since torch 2.13
        options: dict[str, Any] = {new if new in taken else "broadcast_buffers": False}  # finish_backward sends buffers
        self._wrapped = DistributedDataParallel(ForwardProxy(self.module), find_unused_parameters=True, **options)

    def __call__(self, function: Callable[[nn.Module], T]) -> T:
        """Return ``function(module)``; if that is several values, the backward pass must start from the first value."""
        if self._wrapped is None:
            return function(self.module)
        return cast(T, self._wrapped(function))

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside the block, do not sum gradients over the ranks; the first backward pass after the block sums them."""
        return nullcontext() if self._wrapped is None else cast(AbstractContextManager[None], self._wrapped.no_sync())

    def optimizer_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer of this rank updates."""
        return dict(parameters)

    def finish_backward(self) -> None:
        """Complete the gradients of the optimizer's parameters, and give every rank the buffers of rank 0.

        Call this after the last backward pass of a step. DDP itself would send the buffers only at the next forward
        pass; by then, a rank may have ended.
        """
        if self._wrapped is not None:
            self.ranks.broadcast_tensors(list(self.module.buffers()))


class ForwardProxy(nn.Module):
    """A wrapper of ``module`` for DDP and FSDP; its forward pass calls a given function with ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """Return ``function(module)``."""
        return function(self.module)
