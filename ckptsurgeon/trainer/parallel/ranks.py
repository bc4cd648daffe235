"""The processes that train one model together: the rank of this process, and the collective calls of all.

``torchrun`` and ``accelerate launch`` start the processes and set their ranks in the environment
(https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables). Metrics and decisions are exchanged by
gloo, on the CPU. Gradients are summed by NCCL if there are GPUs. Gloo reports a rank that died; NCCL would wait for it.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ...errors import CheckpointError, ConfigError
from ...util.text import escape, listing
from ..system.signals import ignore_sigterm
from .device_group import DeviceGroup
from .watch import RankWatch

__all__ = [
    "SINGLE_PROCESS",
    "LostRanksError",
    "Ranks",
    "TorchrunEnv",
    "describe_lost_rank",
    "is_communication_error",
    "process_group",
    "read_torchrun_env",
]

T = TypeVar("T")

TIMEOUT = datetime.timedelta(hours=12)
"""The longest wait of the other ranks while rank 0 prepares, evaluates or saves. If a rank dies, the wait ends soon."""

NEVER = datetime.timedelta(days=3650)
"""The timeout of the group in which ranks watch each other: ten years, because torch needs a number."""

DETECTION_S = 5.0
"""The seconds within which every living rank notices that another rank has ended."""


@dataclass(frozen=True)
class TorchrunEnv:
    """The environment variables of torchrun: RANK, WORLD_SIZE and LOCAL_RANK.

    LOCAL_RANK is the index of this process on its machine; it is also the index of the GPU that the process uses.
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


class LostRanksError(CheckpointError):
    """Raised if other processes ended before the run was done.

    ``ranks`` maps the rank of each ended process to the reason that it reported, '' for none.

    ``is_whole`` is true if the model of this process has the values after the last complete step. It is false if the
    GPU was in a step, and the step was aborted.
    """

    def __init__(self, ranks: Mapping[int, str], *, is_whole: bool = True) -> None:
        said = ", ".join(describe_lost_rank(rank, reason) for rank, reason in ranks.items())
        super().__init__(f"{said}.", hint="Read the messages of that process.")
        self.ranks, self.is_whole = ranks, is_whole


def describe_lost_rank(rank: int, reason: str) -> str:
    """Return a phrase for messages about a rank that ended; ``reason`` is the reason that the rank reported, or ''."""
    return f"rank {rank} ended{f' with {escape(reason, 300)}' if reason else ', without giving a reason'}"


def is_communication_error(error: Exception) -> bool:
    """Return whether the class and message of an error suggest that a rank has ended.

    Messages of gloo's errors, which are RuntimeErrors, contain the names of gloo's source files.
    """
    from torch import distributed

    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "Connection", "ProcessGroup")
    )


def read_torchrun_env(environment: Mapping[str, str]) -> TorchrunEnv:
    """Return the variables that torchrun set, or the values of a single process if none is set.

    Raises ConfigError if only some of the variables are set, or if they contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = [environment[name] for name in names if name in environment]
    if not given:
        return TorchrunEnv()
    lacking = [name for name in names if name not in environment]
    wrong = [name for name in names if name in environment and not environment[name].isdecimal()]
    if lacking:
        said = f"does not set {listing(lacking, where='')}, but sets other variables of torchrun"
    elif wrong:
        said = f"sets {wrong[0]}={escape(environment[wrong[0]], 20)}, which is not a whole number"
    elif int(given[0]) >= int(given[1]):
        said = f"sets RANK={given[0]}, which must be below WORLD_SIZE={given[1]}"
    else:
        return TorchrunEnv(*map(int, given))
    raise ConfigError(
        f"the environment {said}.",
        hint="Start the processes with torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK, or unset these.",
    )


_CALLS = itertools.count()
"""Counts the runs of a process, so that each run has separate keys in the store."""


@contextmanager
def process_group(env: TorchrunEnv, device: torch.device) -> Iterator[Ranks]:
    """Join the other processes, and yield their Ranks; leave them when the block ends.

    Raises ConfigError if the other processes cannot be reached.
    """
    if env.world_size == 1:
        yield SINGLE_PROCESS
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    gpu = device.type == "cuda"
    if distributed.is_initialized():
        raise ConfigError(
            "torch.distributed is already initialised in this process.",
            hint="Do not call init_process_group: cs.train makes the process group itself, and destroys it at the end.",
        )
    if gpu:
        torch.cuda.set_device(device)
        # Off, as torch's _abort_process_group asks: NCCL's watchdog would kill this process before it saves.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    try:
        store = distributed.PrefixStore(f"ckpt/{next(_CALLS)}", next(rendezvous("env://"))[0])  # type: ignore[attr-defined]
        exits = distributed.PrefixStore("ranks", store)  # type: ignore[attr-defined]
        distributed.init_process_group(
            "nccl" if gpu else "gloo", store=store, rank=env.rank, world_size=env.world_size,
            timeout=None if gpu else TIMEOUT,
        )  # fmt: skip
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT) if gpu else distributed.group.WORLD
        watching = distributed.new_group(backend="gloo", timeout=NEVER) if gpu else None
    except (RuntimeError, ValueError) as error:
        why = escape(str(error).splitlines()[0], 200)
        raise ConfigError(
            f"rank {env.rank} of {env.world_size} cannot reach the other ranks: {why}.",
            hint="Start all ranks with torchrun, which sets MASTER_ADDR and MASTER_PORT too.",
        ) from error
    nccl = DeviceGroup.of_default(device) if gpu else None
    ranks = Ranks(env.rank, env.world_size, control, exits, nccl, watching)
    try:
        yield ranks
    except BaseException as error:
        ranks.report_exit(f"{type(error).__name__}: {error}"[:500])
        if nccl is not None:
            nccl.abort()  # NCCL would wait for the other ranks before it lets this process go
        raise
    finally:
        # DDP's reducer refers to the group. If it were the last reference, the destructor would hold the GIL and wait
        # for a gloo thread that may need the GIL to free its last tensor. destroy_process_group releases the GIL.
        gc.collect()
        distributed.destroy_process_group()
