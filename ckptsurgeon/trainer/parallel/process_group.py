"""Joins the processes that ``torchrun`` or ``accelerate launch`` started, whose ranks are in the environment.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

from __future__ import annotations

import datetime
import gc
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ...errors import ConfigError
from ...util.text import escape, listing
from .device_group import DeviceGroup
from .ranks import TORCHRUN, Ranks, TorchrunEnv

__all__ = ["NEVER", "process_group", "read_torchrun_env"]

TIMEOUT = datetime.timedelta(hours=12)
"""The longest wait of the other ranks while rank 0 prepares, evaluates or saves. If a rank dies, the wait ends soon."""

NEVER = datetime.timedelta(days=3650)
"""The timeout of the group in which ranks watch each other: ten years, because torch needs a number."""


def read_torchrun_env(environment: Mapping[str, str]) -> TorchrunEnv:
    """Return the variables that torchrun set, or the values of a single process if none is set.

    Raises ConfigError if only some of the variables are set, or if they contradict each other.
    """
    given = [environment[name] for name in TORCHRUN if name in environment]
    if not given:
        return TorchrunEnv()
    lacking = [name for name in TORCHRUN if name not in environment]
    wrong = [name for name in TORCHRUN if name in environment and not environment[name].isdecimal()]
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
