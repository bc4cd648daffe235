"""The processes that train one model together, and the model that they train (DistributedDataParallel, DDP).

Metrics and decisions are exchanged by gloo, on the CPU. Gradients are summed by NCCL if there are GPUs. Gloo reports a
rank that died; NCCL would wait for it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..system.signals import ignore_sigterm
from .device_group import DeviceGroup
from .lost_ranks import LostRanksError, is_communication_error
from .watch import RankWatch

__all__ = [
    "SINGLE_PROCESS",
    "TORCHRUN",
    "ForwardProxy",
    "ParallelModel",
    "Ranks",
    "TorchrunEnv",
]


T = TypeVar("T")

DETECTION_S = 5.0
"""The seconds within which every living rank notices that another rank has ended."""


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""The environment variables in which torchrun tells a process its rank."""


@dataclass(frozen=True)
class TorchrunEnv:
    """The values of the environment variables of torchrun; without arguments, those of a single process.

    ``local_rank`` is the index of this process on its machine; it is also the index of the GPU that the process uses.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model; this process is ``rank`` of ``size``.

    Rank 0 is the main rank: it checks, writes and prints.
    """

    rank: int = 0
    size: int = 1
    control: Any = None
    """The gloo group for metrics and decisions."""
    store: Any = None
    """A key-value store, to which a rank writes the reason why it ends; it works even if the group is broken."""
    device: DeviceGroup | None = None
    """The NCCL group for gradients, if there are GPUs."""
    watching: Any = None
    """The gloo group by which the ranks watch each other, if there are GPUs."""

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that checks, writes and prints."""
        return self.rank == 0

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks, in place, with one collective call for each dtype; all must be on one device."""
        if self.size == 1 or not tensors:
            return
        from torch import distributed

        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for several in by_type.values():
            flat = torch.cat([one.reshape(-1) for one in several])
            distributed.all_reduce(flat, group=None if flat.is_cuda else self.control)
            parts = flat.split([one.numel() for one in several])  # type: ignore[no-untyped-call]
            for one, part in zip(several, parts, strict=True):
                one.copy_(part.view_as(one))

    @torch.no_grad()
    def broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors in place by the tensors of rank 0, bit for bit.

        All tensors must be on one device; their dtypes may differ.
        """
        if self.size == 1 or not tensors:
            return
        from torch import distributed

        flat = torch.cat([one.detach().contiguous().reshape(-1).view(torch.uint8) for one in tensors])
        distributed.broadcast(flat, src=0, group=None if flat.is_cuda else self.control)
        for one, part in zip(tensors, flat.split([one.nbytes for one in tensors]), strict=True):  # type: ignore[no-untyped-call]
            one.copy_(part.clone().view(one.dtype).view_as(one))

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of the ranks; every rank must call this."""
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        found: list[Any] = [None] * self.size
        all_gather_object(found, value, group=self.control)
        return found

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.all_gather(None)  # torch's own barrier may use the GPU, and would wait for it

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0; every rank must call this."""
        if self.size == 1:
            return value
        from torch.distributed import broadcast_object_list

        found: list[Any] = [value]
        broadcast_object_list(found, src=0, group=self.control)
        return cast(T, found[0])

    def begin_device_work(self) -> None:
        """Record that the GPUs are about to get work that they can only complete together, such as sums of gradients.

        Make a collective call on the CPU first: it shows that all ranks are alive.
        """
        if self.device is not None:
            self.device.begin()

    def confirm_device_work(self) -> None:
        """Record that the GPU ended its work with other GPUs; raises torch's DistBackendError if it was aborted."""
        if self.device is not None:
            self.device.confirm()

    def settle_device(self) -> bool:
        """Wait until the GPU's work with other GPUs ends, or abort it; return whether values on the GPU are right."""
        return self.device is None or self.device.settle()

    def watched(self) -> AbstractContextManager[object]:
        """Return a context manager that aborts the GPU's work if another rank ends while the block waits for it."""
        if self.device is None:
            return nullcontext()
        return RankWatch(self.watching, self.rank, self.size, self.device.give_up)

    def report_exit(self, reason: str) -> None:
        """Write the reason why this rank ends into the key-value store, so that the other ranks can read it."""
        if self.store is not None:
            with suppress(RuntimeError):
                self.store.set(f"ended/{self.rank}", reason)

    def find_lost(self, error: Exception) -> dict[int, str]:
        """Return {rank that has ended: the reason that it reported, '' if none}.

        If no rank has ended, the dict is empty, and ``error`` has another cause. A failed collective call fails on
        every living rank, so every living rank calls this method. The method reports in the key-value store that its
        rank is alive. A rank that has reported nothing after five seconds has ended.
        """
        if self.size == 1 or not is_communication_error(error):
            return {}
        waited, found, until = set(range(self.size)) - {self.rank}, {}, time.monotonic() + DETECTION_S
        try:
            self.store.set(f"here/{self.rank}", "")
            while waited and time.monotonic() < until:
                for rank in sorted(waited):
                    if self.store.check([f"ended/{rank}"]):
                        found[rank] = self.store.get(f"ended/{rank}").decode(errors="replace")
                    if rank in found or self.store.check([f"here/{rank}"]):
                        waited.remove(rank)
                time.sleep(0.05)
        except RuntimeError:  # the store is gone, because rank 0 held it
            waited = {0} if not self.is_main else waited
        return {**found, **dict.fromkeys(waited, "")}

    @contextmanager
    def detect_lost(self) -> Iterator[None]:
        """If the block raises an error because another rank has ended, raise LostRanksError in its place.

        After this error, values can be read from the GPU without waiting: its work has ended or was aborted.
        """
        try:
            yield
        except Exception as error:
            lost = self.find_lost(error)
            if not lost:
                raise
            ignore_sigterm()
            raise LostRanksError(lost, is_whole=self.settle_device()) from error


SINGLE_PROCESS = Ranks()


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
