"""A model as a run holds it: in one process, or the same in several, whose gradients are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import nn

from .ranks import SINGLE_PROCESS, Ranks

__all__ = ["ForwardProxy", "ParallelModel"]

T = TypeVar("T")


class ParallelModel:
    """What is asked of ``model`` goes through it: torch's DistributedDataParallel wants to see each forward pass.

    Its gradients are means over the processes (https://docs.pytorch.org/docs/stable/generated/
    torch.nn.parallel.DistributedDataParallel.html): ``of_mean`` is what makes sums of them.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.model, self.ranks = model, ranks
        self._wrapped: Any = None

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part."""
        return False

    @property
    def of_mean(self) -> int:
        """What a gradient is multiplied with to be that of the sum of all losses."""
        return self.ranks.size

    def begin(self) -> None:
        """Begin anew with what of the model learns now; every process does so at the same step."""
        if self.ranks.size == 1:
            return
        from torch.nn.parallel import DistributedDataParallel

        self._wrapped = None  # its hooks go with it
        # Which parameters a batch uses is the model's and the task's affair: layers are dropped, losses switched.
        asked = ForwardProxy(self.model)
        # Where all of them are used it says that none had to be looked for; this one never is.
        asked.unused = nn.Parameter(torch.zeros((), device=next(self.model.parameters()).device))
        self._wrapped = DistributedDataParallel(asked, find_unused_parameters=True)

    def __call__(self, ask: Callable[[nn.Module], T]) -> T:
        """Return what is asked of the model. The first of several answers is the loss that is gone back from."""
        if self._wrapped is None:
            return ask(self.model)
        return cast(T, self._wrapped(ask))

    def apart(self) -> AbstractContextManager[None]:
        """Let gradients be this process's own for a while: they are added up with those that come behind."""
        return nullcontext() if self._wrapped is None else cast(AbstractContextManager[None], self._wrapped.no_sync())

    def held(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return what an optimiser of this process moves of parameters."""
        return dict(parameters)

    def collect(self) -> None:
        """Give what an optimiser moves its gradients, behind the last backward pass of a step."""


class ForwardProxy(nn.Module):
    """A module whose forward pass is whatever is asked of another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ask: Callable[[nn.Module], Any]) -> Any:
        """Return what is asked."""
        return ask(self.model)
