"""The processes that train one model together: which of them this is, and what they tell each other.

``torchrun`` and ``accelerate launch`` start them and say in the environment who they are
(https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables). Figures and decisions go by gloo, on the
CPU; gradients by NCCL where there are GPUs.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ...errors import CheckpointError, ConfigError
from ...util.text import escape
from ..system.signals import ignore_sigterm

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
"""How long the others wait for the first, which prepares, evaluates and saves. One that died is not waited for."""

DETECTION_S = 5.0
"""Seconds in which every process that lives has found out that another one does not."""


@dataclass(frozen=True)
class TorchrunEnv:
    """``rank`` of ``size`` processes; ``local`` is its number on this machine, and that of its GPU."""

    rank: int = 0
    size: int = 1
    local: int = 0


@dataclass(frozen=True)
class Ranks:
    """``rank`` of ``size`` processes. The first one checks, writes and speaks."""

    rank: int = 0
    size: int = 1
    control: Any = None
    """The group by which they agree, on the CPU."""
    store: Any = None
    """Where each leaves a word when it ends, though the group be broken."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of one device, by their sums over all processes, in one piece for each type."""
        if self.size == 1 or not tensors:
            return
        from torch.distributed import all_reduce

        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for several in by_type.values():
            flat = torch.cat([one.reshape(-1) for one in several])
            all_reduce(flat, group=None if flat.is_cuda else self.control)
            parts = flat.split([one.numel() for one in several])  # type: ignore[no-untyped-call]
            for one, part in zip(several, parts, strict=True):
                one.copy_(part.view_as(one))

    @torch.no_grad()
    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of one device and of any type, by the first process's, bit for bit."""
        if self.size == 1 or not tensors:
            return
        from torch.distributed import broadcast

        flat = torch.cat([one.detach().contiguous().reshape(-1).view(torch.uint8) for one in tensors])
        broadcast(flat, src=0, group=None if flat.is_cuda else self.control)
        for one, part in zip(tensors, flat.split([one.nbytes for one in tensors]), strict=True):  # type: ignore[no-untyped-call]
            one.copy_(part.clone().view(one.dtype).view_as(one))

    def agreed(self, value: T) -> list[T]:
        """Return what each process says, by rank; every one of them must ask."""
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        found: list[Any] = [None] * self.size
        all_gather_object(found, value, group=self.control)
        return found

    def told(self, value: T) -> T:
        """Return what the first process says."""
        if self.size == 1:
            return value
        from torch.distributed import broadcast_object_list

        found: list[Any] = [value]
        broadcast_object_list(found, src=0, group=self.control)
        return cast(T, found[0])

    def same(self, key: str, value: str) -> bool:
        """Whether all processes say the same of a key that none has asked about, without a collective: by the store.

        Raises torch's DistError where one of them does not say anything for a minute.
        """
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], value)
        self.store.wait(keys, datetime.timedelta(minutes=1))
        return all(self.store.get(one).decode() == value for one in keys)

    def leave(self, why: str) -> None:
        """Leave word why this process ends."""
        if self.store is not None:
            with suppress(RuntimeError):
                self.store.set(f"ended/{self.rank}", why)

    def missing(self, error: Exception) -> dict[int, str]:
        """Return the processes that ended, with the word they left; none where ``error`` has another reason."""
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
        except RuntimeError:  # the first of them kept it
            waited = {0} if not self.is_first else waited
        return {**found, **dict.fromkeys(waited, "")}

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise LostError for what is raised because another process ended."""
        try:
            yield
        except Exception as error:
            lost = self.missing(error)
            if not lost:
                raise
            ignore_sigterm()
            raise LostRanksError(lost) from error


SINGLE_PROCESS = Ranks()


class LostRanksError(CheckpointError):
    """Other processes ended before the run did: ``ranks``, each with the word it left."""

    def __init__(self, ranks: Mapping[int, str]) -> None:
        said = ", ".join(describe_lost_rank(rank, word) for rank, word in ranks.items())
        super().__init__(f"{said}.", hint="What it says itself is the reason.")
        self.ranks = ranks


def describe_lost_rank(rank: int, word: str) -> str:
    """Return how a process ended."""
    return f"rank {rank} ended{f' with {escape(word, 300)}' if word else ', without a word'}"


def is_communication_error(error: Exception) -> bool:
    """Whether an error may come of a process that is gone: gloo's are RuntimeErrors that name its files."""
    from torch import distributed

    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "Connection", "ProcessGroup")
    )


def read_torchrun_env(environment: Mapping[str, str]) -> TorchrunEnv:
    """Return the place that an environment names; raises ConfigError where it names half of one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = [environment[name] for name in names if name in environment]
    if not given:
        return TorchrunEnv()
    if len(given) < len(names) or not all(one.isdecimal() for one in given) or int(given[0]) >= int(given[1]):
        said = ", ".join(f"{name}={escape(environment[name], 20)}" for name in names if name in environment)
        raise ConfigError(f"the environment says {said}.", hint="torchrun sets RANK, WORLD_SIZE and LOCAL_RANK.")
    return TorchrunEnv(*map(int, given))


_CALLS = itertools.count()
"""Each run of a process has keys of its own."""


@contextmanager
def process_group(place: TorchrunEnv, device: torch.device) -> Iterator[Ranks]:
    """Join the other processes until the block ends; raises ConfigError where they do not come."""
    if place.size == 1:
        yield SINGLE_PROCESS
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    gpu = device.type == "cuda"
    if distributed.is_initialized():
        raise ConfigError("this process is in a process group already.", hint="cs.train joins one, and leaves it.")
    if gpu:
        torch.cuda.set_device(device)
    try:
        store = distributed.PrefixStore(f"ckpt/{next(_CALLS)}", next(rendezvous("env://"))[0])  # type: ignore[attr-defined]
        kept = distributed.PrefixStore("ranks", store)  # type: ignore[attr-defined]
        distributed.init_process_group(
            "nccl" if gpu else "gloo", store=store, rank=place.rank, world_size=place.size,
            timeout=None if gpu else TIMEOUT,
        )  # fmt: skip
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT) if gpu else distributed.group.WORLD
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"rank {place.rank} of {place.size} does not find the others: {escape(str(error).splitlines()[0], 200)}.",
            hint="Start them with torchrun, which sets MASTER_ADDR and MASTER_PORT too.",
        ) from error
    ranks = Ranks(place.rank, place.size, control, kept)
    try:
        yield ranks
    except BaseException as error:
        ranks.leave(f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        # Gradients' reducer holds the group. Were it the last to, its destructor would wait, with Python's lock, for a
        # thread of gloo's that may want the lock to drop its last tensor; destroy_process_group lets go of the lock.
        gc.collect()
        distributed.destroy_process_group()
